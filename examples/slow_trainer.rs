//! Runs an async training loop that is slower than the capture. Backpressure makes the capture wait, and the counters show it.
//!
//! Ctrl-C ends the capture after its pass. The loop trains on the rows that were captured, and the program prints its summary. A
//! second Ctrl-C ends the program.
//!
//! Run with `cargo run --example slow_trainer`.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use activation_store::{Producer, RingStore, Stats, WriteError};
use ndarray::Array2;

const PASSES: usize = 200;
const ROWS: usize = 64;

/// Waits for room before each forward pass, so the model does not run ahead of the trainer.
async fn capture(lane: Producer) -> Result<(), WriteError> {
    for _ in 0..PASSES {
        let room = lane.reserve_pass(ROWS).await?;
        let attn = Array2::<f32>::zeros((ROWS, 64)); // the forward pass
        let mlp = Array2::<f32>::zeros((ROWS, 128));
        // The room is reserved, so there is no need to await the handle.
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
    let mut minibatches = store.minibatches();
    // The loop below ends when the task ends. If the task fails, the loop gets the error after the last row.
    tokio::spawn(store.producers().task("capture", capture)?);

    let mut ctrl_c = pin!(tokio::signal::ctrl_c());
    let mut stopped = false;
    loop {
        let minibatch = tokio::select! {
            biased;
            result = &mut ctrl_c, if !stopped => {
                result?;
                println!("stopping: what was captured is still trained on");
                store.close(); // the capture gets `Closed` at its next write, and has ended well
                stopped = true;
                tokio::spawn(async { tokio::signal::ctrl_c().await.map(|()| std::process::exit(130)) });
                continue;
            }
            minibatch = minibatches.try_next() => minibatch?,
        };
        let Some(minibatch) = minibatch else { break };
        tokio::time::sleep(Duration::from_millis(2)).await; // the training step
        if minibatch.ordinal() % 50 == 0 {
            let stats = store.stats();
            println!("{stats}");
            check(&stats);
        }
    }

    let stats = store.stats();
    println!("{stats}");
    check(&stats);
    assert!(stats.components.iter().all(|rows| rows.served == rows.accepted));
    if !stopped {
        assert!(stats.components.iter().all(|rows| rows.served == (PASSES * ROWS) as u64));
        assert!(!stats.waited_for_consumers.is_zero(), "capture waited for the trainer");
    }
    Ok(())
}
