//! An async training loop that is slower than capture: backpressure makes capture wait, and the counters show it.
//!
//! Run with `cargo run --example slow_trainer`.

use std::time::Duration;

use activation_store::{RingStore, Stats};
use ndarray::Array2;

const BATCHES: usize = 200;
const ROWS: usize = 64;

fn show(when: &str, stats: &Stats) {
    let rows = &stats.components[0];
    println!(
        "{when:>10}: {:>6} accepted = {:>5} resident + {:>6} served + {} dropped; {:>3} queued; {} ready frames; \
         capture waited {:.0?}, training {:.0?}",
        rows.accepted,
        rows.resident,
        rows.served,
        rows.dropped.total(),
        rows.queued,
        stats.frames_ready,
        stats.waited_for_consumers,
        stats.waited_for_producers,
    );
    assert_eq!(rows.accepted, rows.resident + rows.served + rows.dropped.total());
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store =
        RingStore::builder().component("mlp", 128).batch_size(ROWS).window(16 * ROWS).queue_rows(4 * ROWS).build()?;
    let mut minibatches = store.minibatches();

    let capture = tokio::spawn({
        let store = store.clone();
        async move {
            for _ in 0..BATCHES {
                store.extend(Array2::<f32>::zeros((ROWS, 128)), 0)?.await?;
            }
            store.close();
            Ok::<_, activation_store::WriteError>(())
        }
    });

    while let Some(minibatch) = minibatches.try_next().await? {
        tokio::time::sleep(Duration::from_millis(2)).await; // the training step
        if minibatch.ordinal() % 50 == 0 {
            show(&format!("step {}", minibatch.ordinal()), &store.stats());
        }
    }
    capture.await??;

    let stats = store.stats();
    show("end", &stats);
    assert_eq!(stats.components[0].served, (BATCHES * ROWS) as u64);
    assert!(!stats.waited_for_consumers.is_zero(), "capture waited for the trainer");
    Ok(())
}
