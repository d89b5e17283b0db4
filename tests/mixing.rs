//! Promise 7: the rows of a minibatch, and of any contiguous eighth of it, spread evenly over the window.
//!
//! The measure says how far the positions of the rows are from an even spread over `WINDOW` rows: the Kolmogorov-Smirnov distance
//! to the uniform distribution. It is at least 1/n for n rows, and 1 for rows next to each other. Three worse ways of mixing fail the
//! bounds: a queue, a shuffle of blocks, and a shuffle of half the window. A shuffle of blocks draws the rows of a minibatch at random,
//! and so less evenly. The tests show that the three fail.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::ops::Range;

use activation_store::RingStore;
use common::{Random, drain, rows, watchdog};

const BATCH: usize = 256;
const WINDOW: usize = 32 * BATCH;
const ROWS: usize = 20 * WINDOW;

/// Returns the ids of every minibatch, in order.
type Served = Vec<Vec<usize>>;

fn store(seed: u64, window: usize) -> Served {
    watchdog(move || {
        let store = RingStore::builder().component("a", 1).batch_size(BATCH).window(window).seed(seed).build().unwrap();
        let mut minibatches = store.minibatches();
        std::thread::spawn(move || {
            for at in (0..ROWS).step_by(500) {
                store.extend_blocking(rows(at..(at + 500).min(ROWS), 1), 0).unwrap();
            }
        });
        drain(&mut minibatches)
    })
}

fn queue() -> Served {
    let ids: Vec<usize> = (0..ROWS).collect();
    ids.chunks(BATCH).map(<[usize]>::to_vec).collect()
}

/// Fills a window, shuffles it, serves it, and starts again.
fn shuffled_blocks() -> Served {
    let mut random = Random::new(1);
    let mut ids: Vec<usize> = (0..ROWS).collect();
    for block in ids.chunks_mut(WINDOW) {
        for i in (1..block.len()).rev() {
            block.swap(i, random.below(i + 1));
        }
    }
    ids.chunks(BATCH).map(<[usize]>::to_vec).collect()
}

/// Returns how unevenly the positions spread over the window from `start`: between 1/n and 1.
fn unevenness(ids: &[usize], start: usize) -> f64 {
    let mut positions: Vec<f64> = ids.iter().map(|&id| (id - start) as f64 / WINDOW as f64).collect();
    positions.sort_by(f64::total_cmp);
    let n = positions.len() as f64;
    let gaps = (0..).zip(&positions).map(|(i, &at)| f64::max(at - f64::from(i) / n, f64::from(i + 1) / n - at));
    gaps.fold(0.0, f64::max)
}

/// Returns the worst unevenness of the full minibatches in the steady state: of whole minibatches, and of their eighths.
fn worst(served: &Served) -> (f64, f64) {
    let full = served.iter().filter(|ids| ids.len() == BATCH);
    let steady: Vec<_> = full.skip(WINDOW / BATCH).collect();
    // The last window is shuffled at the end.
    let steady = &steady[..steady.len() - WINDOW / BATCH];
    assert!(steady.len() > 100);
    let (mut whole, mut eighths) = (0.0, 0.0);
    for ids in steady {
        let start = *ids.iter().min().unwrap();
        whole = f64::max(whole, unevenness(ids, start));
        for eighth in parts(BATCH / 8) {
            eighths = f64::max(eighths, unevenness(&ids[eighth], start));
        }
    }
    (whole, eighths)
}

/// Returns all contiguous parts of a minibatch with this many rows, also the parts that do not start at a multiple of it.
fn parts(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..=BATCH - rows).step_by(7).chain([BATCH - rows]).map(move |start| start..start + rows)
}

/// One row from each of 256 evenly spread runs is 1/256 from even. An eighth of them is 1/32 from even.
const WHOLE: f64 = 3.0 / BATCH as f64;
const EIGHTH: f64 = 3.0 / (BATCH / 8) as f64;

#[test]
fn minibatches_spread_evenly_over_the_window() {
    for seed in [0, 1, 2] {
        let (whole, eighths) = worst(&store(seed, WINDOW));
        assert!(whole <= WHOLE, "seed {seed}: {whole}");
        assert!(eighths <= EIGHTH, "seed {seed}: {eighths}");
    }
}

#[test]
fn the_bounds_tell_worse_mixing_apart() {
    for (name, served) in
        [("a queue", queue()), ("shuffled blocks", shuffled_blocks()), ("half the window", store(0, WINDOW / 2))]
    {
        let (whole, eighths) = worst(&served);
        assert!(whole > 2.0 * WHOLE, "{name}: {whole}");
        assert!(eighths > 2.0 * EIGHTH, "{name}: {eighths}");
    }
}

#[test]
fn from_the_first_minibatch_rows_spread_over_half_the_window() {
    let served = store(5, WINDOW);
    for (i, ids) in served[..WINDOW / BATCH].iter().enumerate() {
        let (first, last) = (ids.iter().min().unwrap(), ids.iter().max().unwrap());
        assert!(last - first >= WINDOW * 7 / 16, "minibatch {i} spans {}", last - first);
        for eighth in parts(BATCH / 8) {
            let ids = &ids[eighth];
            let span = ids.iter().max().unwrap() - ids.iter().min().unwrap();
            assert!(span >= WINDOW * 6 / 16, "an eighth of minibatch {i} spans {span}");
        }
    }
}

#[test]
fn the_first_minibatch_comes_after_half_a_window_and_then_one_per_minibatch_of_rows() {
    let served = store(5, WINDOW);
    for (i, ids) in served[..served.len() - WINDOW / BATCH].iter().enumerate() {
        let completed_by = ids.iter().max().unwrap() + 1;
        let due = WINDOW / 2 + (i + 1) * BATCH - BATCH / 2;
        assert!(completed_by.abs_diff(due) <= BATCH, "minibatch {i} is complete at row {completed_by}, not {due}");
    }
}

/// Neighbours in the sequence do not meet again. A minibatch takes one row of each run of 32. The next row of the same frame is a
/// random one of the next 32.
#[test]
fn neighbours_in_the_sequence_are_not_neighbours_in_a_minibatch() {
    let served = store(5, WINDOW);
    let steady = &served[WINDOW / BATCH..served.len() - WINDOW / BATCH];
    let meetings: usize = steady
        .iter()
        .map(|ids| {
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            sorted.windows(2).filter(|pair| pair[1] == pair[0] + 1).count()
        })
        .sum();
    // The last row of a run is followed by the first of the next run: 1 in 32 × 32 for each of 255 pairs.
    let expected = steady.len() as f64 * 255.0 / 1024.0;
    assert!((meetings as f64) < 1.5 * expected && meetings as f64 > 0.5 * expected, "{meetings}, not {expected}");
}

#[test]
fn a_sequence_spreads_over_minibatches_as_planned() {
    let plan = RingStore::builder().component("a", 1).batch_size(BATCH).window(WINDOW).plan().unwrap();
    let served = store(5, WINDOW);
    let steady = &served[WINDOW / BATCH..served.len() - WINDOW / BATCH];
    for sequence in [10, 100, 512, 3000] {
        // The sequences may start anywhere.
        let score = |(i, ids): (usize, &Vec<usize>)| {
            let mut of_sequence: HashMap<usize, usize> = HashMap::new();
            ids.iter().for_each(|id| *of_sequence.entry((id + 7 * i) / sequence).or_default() += 1);
            of_sequence.values().map(|&rows| rows * rows).sum::<usize>() as f64 / BATCH as f64
        };
        let measured = steady.iter().enumerate().map(score).sum::<f64>() / steady.len() as f64;
        let planned = plan.shared_rows(sequence);
        assert!((planned / measured - 1.0).abs() < 0.02, "{sequence}: {planned} planned, {measured} measured");
    }
}

#[test]
fn what_is_left_at_the_end_is_mixed_too() {
    let served = store(5, WINDOW);
    for ids in &served[served.len() - WINDOW / BATCH / 2 + 1..] {
        if ids.len() == BATCH {
            let span = ids.iter().max().unwrap() - ids.iter().min().unwrap();
            assert!(span >= WINDOW * 3 / 4, "{span}");
        }
    }
}

/// Tests minibatches of 4,096 rows: any contiguous 32nd, and the slots of rows of each age.
mod large_minibatches {
    use super::*;

    const BATCH: usize = 4096;
    const WINDOW: usize = 16 * BATCH;
    const ROWS: usize = 12 * WINDOW;
    const PART: usize = BATCH / 32;

    fn store(seed: u64) -> Served {
        watchdog(move || {
            let builder = RingStore::builder().component("a", 1).batch_size(BATCH).window(WINDOW);
            let store = builder.seed(seed).build().unwrap();
            let mut minibatches = store.minibatches();
            std::thread::spawn(move || {
                for at in (0..ROWS).step_by(BATCH) {
                    store.extend_blocking(rows(at..at + BATCH, 1), 0).unwrap();
                }
            });
            steady(drain(&mut minibatches))
        })
    }

    fn queue() -> Served {
        let ids: Vec<usize> = (0..ROWS).collect();
        steady(ids.chunks(BATCH).map(<[usize]>::to_vec).collect())
    }

    fn shuffled_blocks() -> Served {
        let mut random = Random::new(1);
        let mut ids: Vec<usize> = (0..ROWS).collect();
        for block in ids.chunks_mut(WINDOW) {
            for i in (1..block.len()).rev() {
                block.swap(i, random.below(i + 1));
            }
        }
        steady(ids.chunks(BATCH).map(<[usize]>::to_vec).collect())
    }

    fn steady(served: Served) -> Served {
        let ends = WINDOW / BATCH;
        served[ends..served.len() - ends].to_vec()
    }

    /// Returns the positions of rows in the window. The oldest row of the minibatch is at 0.
    fn positions(ids: &[usize]) -> Vec<f64> {
        let oldest = ids.iter().min().unwrap();
        ids.iter().map(|id| (id - oldest) as f64 / WINDOW as f64).collect()
    }

    /// Returns how far positions are from an even spread: between 1/n and 1.
    fn unevenness(part: &[f64]) -> f64 {
        let mut sorted = part.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len() as f64;
        let gaps = (0..).zip(&sorted).map(|(i, at)| f64::max(at - f64::from(i) / n, f64::from(i + 1) / n - at));
        gaps.fold(0.0, f64::max)
    }

    fn span(part: &[f64]) -> f64 {
        part.iter().fold(0.0, |a, &b| f64::max(a, b)) - part.iter().fold(f64::MAX, |a, &b| f64::min(a, b))
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn correlation(a: &[f64], b: &[f64]) -> f64 {
        let (mean_a, mean_b) = (mean(a), mean(b));
        let products = |x: &[f64], mean_x: f64, y: &[f64], mean_y: f64| -> f64 {
            x.iter().zip(y).map(|(x, y)| (x - mean_x) * (y - mean_y)).sum()
        };
        let scale = products(a, mean_a, a, mean_a) * products(b, mean_b, b, mean_b);
        products(a, mean_a, b, mean_b) / scale.sqrt()
    }

    #[derive(Debug)]
    struct Measured {
        /// The least part of the window that a 32nd spans, and the most that a 32nd is from an even spread.
        span: f64,
        unevenness: f64,
        /// The mean correlation of the slot of a row with its position, and of the positions in two minibatches, slot by slot.
        slot_and_position: f64,
        two_minibatches: f64,
    }

    fn measure(served: &Served) -> Measured {
        let all: Vec<Vec<f64>> = served.iter().map(|ids| positions(ids)).collect();
        let slots: Vec<f64> = (0..BATCH).map(|slot| slot as f64).collect();
        // The parts may start anywhere, not only at a multiple of their length.
        let parts = || all.iter().flat_map(|minibatch| minibatch.windows(PART).step_by(37));
        let pairs = (0..all.len()).flat_map(|i| (i + 1..all.len()).map(move |j| (i, j))).step_by(11);
        Measured {
            span: parts().map(span).fold(1.0, f64::min),
            unevenness: parts().map(unevenness).fold(0.0, f64::max),
            slot_and_position: mean(&all.iter().map(|minibatch| correlation(&slots, minibatch)).collect::<Vec<_>>()),
            two_minibatches: mean(&pairs.map(|(i, j)| correlation(&all[i], &all[j])).collect::<Vec<_>>()),
        }
    }

    const SPAN: f64 = 0.8;
    const UNEVENNESS: f64 = 5.0 / PART as f64;
    const CORRELATION: f64 = 0.1;

    #[test]
    fn any_32nd_spans_the_window_and_no_slot_is_always_old() {
        for seed in [0, 1, 2] {
            let measured = measure(&store(seed));
            assert!(measured.span >= SPAN, "seed {seed}: {measured:?}");
            assert!(measured.unevenness <= UNEVENNESS, "seed {seed}: {measured:?}");
            assert!(measured.slot_and_position.abs() <= CORRELATION, "seed {seed}: {measured:?}");
            assert!(measured.two_minibatches.abs() <= CORRELATION, "seed {seed}: {measured:?}");
        }
    }

    #[test]
    fn the_bounds_tell_worse_mixing_apart() {
        let queue = measure(&queue());
        assert!(queue.span < SPAN / 2.0 && queue.unevenness > 2.0 * UNEVENNESS, "{queue:?}");
        assert!(queue.slot_and_position.abs() > 2.0 * CORRELATION, "{queue:?}");
        assert!(queue.two_minibatches.abs() > 2.0 * CORRELATION, "{queue:?}");
        // In shuffled blocks, too, no slot is always old. But their parts are only as even as chance makes them.
        let blocks = measure(&shuffled_blocks());
        assert!(blocks.unevenness > 2.0 * UNEVENNESS, "{blocks:?}");
    }
}
