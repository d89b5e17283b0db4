//! Awaits the handles of `extend`, so that memory stays bounded. A handle is a future, and it yields what was written.
//!
//! Run with `cargo run --example awaited_extend`.

use activation_store::RingStore;
use ndarray::Array2;

const ROWS: usize = 20_000;
const BATCH: usize = 250;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = RingStore::builder().component("mlp", 64).batch_size(128).window(4_096).seed(1).build()?;
    let mut minibatches = store.minibatches();

    let capture = async move {
        for i in 0..ROWS / BATCH {
            // `extend` returns at once, so the model could run on here. The `await` waits while the ring is full.
            let handle = store.extend(Array2::from_elem((BATCH, 64), i as f32), "mlp")?;
            let written = handle.await?;
            assert_eq!(written.first_row, (i * BATCH) as u64);
        }
        // `store` is dropped here. The stream ends when the consumer has taken everything.
        Ok::<_, activation_store::WriteError>(())
    };

    let train = async {
        let (mut rows, mut mixed) = (0, 0.0);
        while let Some(minibatch) = minibatches.try_next().await? {
            let view = minibatch.view::<f32>("mlp")?;
            let first_feature = view.column(0);
            rows += view.nrows();
            mixed += first_feature.std(0.0) * view.nrows() as f32;
        }
        Ok::<_, Box<dyn std::error::Error>>((rows, mixed / rows as f32))
    };

    let (captured, trained) = futures::join!(capture, train);
    captured?;
    let (rows, spread) = trained?;
    assert_eq!(rows, ROWS);
    println!("{rows} rows captured and trained on, all on one thread");
    println!("a minibatch's rows come from batches with a standard deviation of {spread:.1} batches");
    Ok(())
}
