//! An async training loop that is slower than capture: backpressure makes capture wait, and the counters show it.
//!
//! Run with `cargo run --example slow_trainer`.

use std::error::Error;
use std::time::Duration;

use activation_store::{RingStore, Stats, WriteError};
use ndarray::Array2;

const PASSES: usize = 200;
const ROWS: usize = 64;

/// Waits for room before each forward pass, so that the model does not run ahead of the trainer either.
async fn capture(store: &RingStore) -> Result<(), WriteError> {
    for _ in 0..PASSES {
        let room = store.reserve_pass(ROWS).await?;
        let attn = Array2::<f32>::zeros((ROWS, 64)); // the forward pass
        let mlp = Array2::<f32>::zeros((ROWS, 128));
        // Not awaited: the room was there before.
        drop(room.extend_pass([("attn", attn), ("mlp", mlp)])?);
    }
    Ok(())
}

fn check(stats: &Stats) {
    for rows in &stats.components {
        assert_eq!(rows.accepted, rows.resident + rows.served + rows.dropped.total());
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let builder = RingStore::builder().component("attn", 64).component("mlp", 128);
    let store = builder.batch_size(ROWS).window(16 * ROWS).queue_rows(4 * ROWS).build()?;
    let (monitor, mut minibatches) = (store.monitor(), store.minibatches());

    tokio::spawn(async move {
        if let Err(error) = capture(&store).await {
            store.close_with(error); // the loop below gets the error after the last minibatch
        }
        // `store` is dropped here, which closes it. The monitor does not keep it open.
    });

    while let Some(minibatch) = minibatches.try_next().await? {
        tokio::time::sleep(Duration::from_millis(2)).await; // the training step
        if minibatch.ordinal() % 50 == 0 {
            let stats = monitor.stats();
            println!("{stats}");
            check(&stats);
        }
    }

    let stats = monitor.stats();
    println!("{stats}");
    check(&stats);
    assert!(stats.components.iter().all(|rows| rows.served == (PASSES * ROWS) as u64));
    assert!(!stats.waited_for_consumers.is_zero(), "capture waited for the trainer");
    Ok(())
}
