//! Simulates other ways of mixing and gives them the same scores. Only row numbers move, through a buffer of [`C`] rows.

use std::iter::from_fn;
use std::mem::replace;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::Effort;
use crate::mixing::{C, shared};
use crate::pipeline::BATCH;
use crate::report::Number;

pub(crate) fn measure(_: Effort) -> Vec<Number> {
    [
        ("a reservoir", score(reservoir())),
        // The buffer serves half of its rows before it is filled again.
        ("SAELens' mixing buffer", score(refilled(C / 2))),
        // The buffer is filled again when less than half of its rows are left.
        ("dictionary_learning's buffer", score(refilled(C / 2 - BATCH))),
    ]
    .into_iter()
    .map(|(name, score)| Number {
        name: format!("rows that share a sequence, {name}"),
        value: score,
        unit: "rows",
        must: None,
    })
    .collect()
}

/// Returns the mean over many minibatches. Leaves out the first ones, because they come from a buffer that was just filled.
fn score(served: impl Iterator<Item = Vec<i64>>) -> f64 {
    let minibatches = 40 * C / BATCH;
    served.skip(10 * C / BATCH).take(minibatches).map(|rows| shared(rows.into_iter())).sum::<f64>() / minibatches as f64
}

/// Simulates a reservoir. Every new row takes the place of a random row, which leaves.
fn reservoir() -> impl Iterator<Item = Vec<i64>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut stored: Vec<i64> = (0..C as i64).collect();
    let mut leaving = (C as i64..).map(move |row| replace(&mut stored[rng.random_range(0..C)], row));
    from_fn(move || Some(leaving.by_ref().take(BATCH).collect()))
}

/// Simulates a buffer that is filled and shuffled, serves minibatches until `kept` rows are left, and is filled again.
///
/// To shuffle rows and take them in order is the same as to draw them at random without replacement.
fn refilled(kept: usize) -> impl Iterator<Item = Vec<i64>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut coming = 0_i64..;
    let mut buffer: Vec<i64> = Vec::new();
    from_fn(move || {
        if buffer.len() <= kept {
            buffer.extend(coming.by_ref().take(C - buffer.len()));
            buffer.shuffle(&mut rng);
        }
        Some(buffer.split_off(buffer.len() - BATCH))
    })
}
