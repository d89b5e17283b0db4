//! Captures from several replicas of a model at once. Each replica has a lane of its own, so rows of different tokens are never paired.
//!
//! Run with `cargo run --example concurrent_capture`.

use std::error::Error;

use activation_store::{DType, Producer, Refused, RingStore, WriteError};
use ndarray::{Array2, Axis};

const REPLICAS: u32 = 4;
const PASSES: u32 = 50;
const TOKENS: usize = 100;

/// Takes the place of a forward pass. Gives each hook its activations. The hooks run at different times, as layers do.
fn forward(
    replica: u32,
    pass: u32,
    mut hook: impl FnMut(&str, Array2<f32>) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let value = (replica * PASSES + pass) as f32;
    hook("layer.0", Array2::from_elem((TOKENS, 32), value))?;
    hook("layer.1", Array2::from_elem((TOKENS, 48), value))
}

fn capture(producer: &Producer, replica: u32) -> Result<(), WriteError> {
    for number in 0..PASSES {
        // If `forward` fails, the pass is dropped, and the store has no part of it.
        let mut pass = producer.begin_pass();
        pass.put("replica", Array2::from_elem((TOKENS, 1), replica))?;
        forward(replica, number, |layer, activations| pass.put(layer, activations))?;
        // Waits while the queue is full.
        pass.commit_blocking()?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let store = RingStore::builder()
        .component("layer.0", 32)
        .component("layer.1", 48)
        .component_of("replica", 1, DType::U32) // which replica a row comes from
        .batch_size(64)
        .window(2_048)
        .build()?;
    let mut minibatches = store.minibatches();
    let replicas = store.producers();
    for replica in 0..REPLICAS {
        replicas.spawn(format!("replica {replica}"), move |lane| capture(&lane, replica))?;
    }
    // There are no more replicas, so the loop below ends with the last one. If one fails, the loop gets the error after the last row.
    replicas.close();

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
    assert_eq!(per_replica, [PASSES as usize * TOKENS; REPLICAS as usize]);
    println!("rows drained per replica, none mixed up: {per_replica:?}");
    println!("{}", store.stats());
    Ok(())
}
