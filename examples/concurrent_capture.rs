//! Several model replicas capture at once, each on a lane of its own, so that their rows never mix.
//!
//! Run with `cargo run --example concurrent_capture`.

use std::thread;

use activation_store::{DType, Merge, Producer, RingStore};
use ndarray::{Array2, Axis};

const REPLICAS: u32 = 4;
const PASSES: u32 = 50;
const TOKENS: usize = 100;

/// Stands in for a forward pass: tells each hook its activations. The hooks run at different times, as layers do.
fn forward(replica: u32, pass: u32, mut hook: impl FnMut(&str, Array2<f32>)) {
    let value = (replica * PASSES + pass) as f32;
    hook("layer.0", Array2::from_elem((TOKENS, 32), value));
    hook("layer.1", Array2::from_elem((TOKENS, 48), value));
}

fn capture(producer: &Producer, replica: u32) -> Result<(), activation_store::Refused> {
    for pass in 0..PASSES {
        // The handle is not needed: blocking was the backpressure, and what fails unseen is reported by the next call.
        producer.extend_blocking(Array2::from_elem((TOKENS, 1), replica), "replica")?;
        let mut outcome = Ok(());
        forward(replica, pass, |layer, activations| {
            if outcome.is_ok() {
                outcome = producer.extend_blocking(activations, layer);
            }
        });
        outcome?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = RingStore::builder()
        .component("layer.0", 32)
        .component("layer.1", 48)
        .component_of("replica", 1, DType::U32) // which replica a row comes from
        .batch_size(64)
        .window(2_048)
        .merge(Merge::RoundRobin) // the same minibatches in every run
        .build()?;
    let producers = (0..REPLICAS).map(|_| store.producer()).collect::<Result<Vec<_>, _>>()?;
    let mut minibatches = store.minibatches();
    drop(store); // the producers keep it open

    let threads: Vec<_> =
        (0..).zip(producers).map(|(replica, producer)| thread::spawn(move || capture(&producer, replica))).collect();

    let mut per_replica = [0; REPLICAS as usize];
    for minibatch in minibatches.blocking() {
        let minibatch = minibatch?;
        let (shallow, deep) = (minibatch.view::<f32>("layer.0")?, minibatch.view::<f32>("layer.1")?);
        let replicas = minibatch.view::<u32>("replica")?;
        for ((shallow, deep), replica) in shallow.axis_iter(Axis(0)).zip(deep.axis_iter(Axis(0))).zip(replicas) {
            assert_eq!(shallow[0], deep[0], "a row's components come from the same token");
            assert_eq!(shallow[0] as u32 / PASSES, *replica);
            per_replica[*replica as usize] += 1;
        }
    }
    for thread in threads {
        thread.join().map_err(|_| "a capture thread panicked")??;
    }
    assert_eq!(per_replica, [PASSES as usize * TOKENS; REPLICAS as usize]);
    println!("rows drained per replica, none mixed up: {per_replica:?}");
    Ok(())
}
