//! Computes what a configuration means before you build a store: memory, mixing, and the rows until the first minibatch.

use std::fmt;

use crate::ring_store::builder::{Config, RingStoreBuilder};
use crate::rows::build_error::{BuildError, readable};

/// The sizes of a ring store, and how well it mixes rows. Made by [`RingStoreBuilder::plan`].
///
/// Displays as one line, which `build` logs at level `INFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The rows of the window: whole frames.
    pub window: usize,
    /// The rows of a minibatch.
    pub batch_size: usize,
    /// The rows of a frame: one minibatch, or several if minibatches are small. A minibatch that you keep also keeps the memory of
    /// its frame.
    pub frame_rows: usize,
    /// The number of frames that are filled at the same time.
    pub open_frames: usize,
    /// The number of all frames: the open frames, the frames that may be ready, and one frame that a consumer works on.
    pub frames: usize,
    /// The size of all frames, in bytes. The store takes this memory when it starts, and keeps it.
    pub memory: usize,
    /// The size of the rows that may wait in the queue, in bytes, in the components' element types. This is memory of the callers.
    /// `memory` does not include it.
    pub queue_memory: usize,
    /// The rows until the first minibatch is ready: half the window plus half a frame. The exact number may differ by one frame plus
    /// one row for each open frame.
    ///
    /// The store holds about so many rows, plus the ready minibatches, before a consumer must take a minibatch.
    pub first_minibatch: usize,
}

impl RingStoreBuilder {
    /// Computes the sizes and the mixing of a store with this configuration. Does not build the store, and does not ask for memory.
    ///
    /// This example asks two questions. How large a window do 8 GiB hold? How well does it mix texts of 1,024 tokens?
    ///
    /// ```
    /// use activation_store::{DType, RingStore};
    ///
    /// let builder = RingStore::builder().component("layer.4", 768).dtype(DType::BF16).batch_size(4096).memory(8 << 30);
    /// let plan = builder.plan()?;
    /// assert_eq!(plan.window, 5_578_752); // rows
    /// assert_eq!((plan.open_frames, plan.frames), (1362, 1365));
    /// assert!(plan.memory <= 8 << 30);
    /// // A row meets few others of its text in its minibatch:
    /// assert!(plan.shared_rows(1024) < 1.2);
    /// // The price: training starts late.
    /// assert_eq!(plan.first_minibatch, 2_791_424); // rows
    /// println!("{plan}");
    /// # Ok::<(), activation_store::BuildError>(())
    /// ```
    ///
    /// # Errors
    /// [`BuildError`] if the configuration is invalid. Only `build` checks whether the memory is available now.
    pub fn plan(&self) -> Result<Plan, BuildError> {
        Ok(Plan::new(&self.clone().check()?))
    }
}

impl Plan {
    pub(crate) fn new(config: &Config) -> Self {
        let (layout, window) = (&config.layout, config.window());
        let row_bytes = (0..layout.n_components()).map(|component| layout.row_bytes(component)).sum::<usize>();
        Plan {
            window,
            batch_size: config.batch_size,
            frame_rows: layout.rows(),
            open_frames: config.open_frames,
            frames: config.frames(),
            memory: config.frames().saturating_mul(layout.bytes()),
            queue_memory: config.queue_rows.saturating_mul(row_bytes),
            first_minibatch: window.saturating_add(layout.rows()) / 2,
        }
    }

    /// Computes how many rows of a minibatch come from the same sequence as one of its rows, this row included. The result is the
    /// mean over all rows of a minibatch and over all places where the sequences may start. Sequences have `sequence` rows,
    /// and come one after the other. The result is at least 1, and fewer rows are better.
    ///
    /// The result holds once the store has served its first window. If producers take turns, count in `sequence` all rows from the
    /// first to the last row of a sequence, also the rows of other producers. For a [replay](crate::Replay), `sequence` can be the
    /// rows of a shard. Then the result says how many rows come from one shard.
    ///
    /// ```
    /// use activation_store::RingStore;
    ///
    /// let shared = |window| {
    ///     let builder = RingStore::builder().component("mlp", 384).batch_size(4096).window(window);
    ///     Ok::<_, activation_store::BuildError>(builder.plan()?.shared_rows(512).round())
    /// };
    /// assert_eq!(shared(65_536)?, 32.0);
    /// assert_eq!(shared(2 * 65_536)?, 16.0); // twice the window, half as many
    /// # Ok::<(), activation_store::BuildError>(())
    /// ```
    #[must_use]
    pub fn shared_rows(&self, sequence: usize) -> f64 {
        // Let M be the number of open frames and B the rows of each. A frame takes one random row of each of B runs of M rows.
        // Take two rows at the distance d, one of them in the frame. The other row is in the frame with the probability 1/M, but
        //  * not if both rows are in one run. This has the probability 1 - d/M if d < M, and else 0;
        //  * not if the frame takes no part in the run of the other row. A larger d makes this likelier, and d >= M × B certain.
        // A row of a sequence of S rows has on average 2 (1 - d/S) rows at the distance d in the same sequence.
        let [m, b, s] = [self.open_frames, self.frame_rows, sequence.max(1)].map(|n| n as f64);
        // The sums of (1 - d/S) and of (1 - d/S) × d, for d from 1 to n.
        let pairs = |n: f64| n - n * (n + 1.0) / (2.0 * s);
        let distances = |n: f64| n * (n + 1.0) / 2.0 - n * (n + 1.0) * (2.0 * n + 1.0) / (6.0 * s);
        let (near, far) = (m.min(s) - 1.0, (m * b).min(s) - 1.0);
        let of_near = distances(near) / m * (1.0 - 1.0 / b);
        let of_far = pairs(far) - pairs(near) - (distances(far) - distances(near)) / (m * b);
        // A minibatch has a share of the rows of its frame.
        let share = if b > 1.0 { (self.batch_size as f64 - 1.0) / (b - 1.0) } else { 1.0 };
        1.0 + 2.0 / m * (of_near + of_far) * share
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { window, batch_size, open_frames, frames, first_minibatch, .. } = self;
        let minibatches = window / batch_size.max(&1);
        write!(
            f,
            "a window of {window} rows ({minibatches} minibatches of {batch_size}): {} in {frames} frames, and {} in the \
             queue; first minibatch after about {first_minibatch} rows; each minibatch takes 1 row in {open_frames}",
            readable(self.memory),
            readable(self.queue_memory),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::dealing::dealer::Dealer;
    use crate::rows::element::DType;

    fn builder() -> RingStoreBuilder {
        RingStoreBuilder::default().component("a", 3).component_of("b", 1, DType::I64)
    }

    #[test]
    fn the_figures_follow_from_the_configuration() {
        // Blocks of 100 × 12 bytes, which makes 1216, and of 100 × 8, which makes 832.
        let plan = builder().batch_size(100).window(1050).ready_frames(4).queue_rows(300).plan().unwrap();
        let expected = Plan {
            window: 1000,
            batch_size: 100,
            frame_rows: 100,
            open_frames: 10,
            frames: 15,
            memory: 15 * (1216 + 832),
            queue_memory: 300 * 20,
            first_minibatch: 550,
        };
        assert_eq!(plan, expected);
        let line = "a window of 1000 rows (10 minibatches of 100): 30.00 KiB in 15 frames, and 5.86 KiB in the queue; \
                    first minibatch after about 550 rows; each minibatch takes 1 row in 10";
        assert_eq!(plan.to_string(), line);
    }

    /// The rows of each minibatch, and how many rows had been dealt when the first was complete.
    fn dealt(frames: usize, slots: usize, minibatches: usize) -> (Vec<Vec<usize>>, usize) {
        let mut dealer = Dealer::new(frames, slots, 1);
        let (mut open, mut complete, mut first) = (vec![Vec::new(); frames], Vec::new(), 0);
        let mut places = Vec::new();
        for row in 0.. {
            places.clear();
            let full = dealer.deal(1, &mut places);
            open[places[0].frame as usize].push(row);
            if let Some(full) = full {
                complete.push(std::mem::take(&mut open[full]));
                first = if complete.len() == 1 { row + 1 } else { first };
                if complete.len() == minibatches {
                    break;
                }
            }
        }
        (complete, first)
    }

    /// The mean over the minibatch's rows, where a sequence starts before row `start`.
    fn shared(minibatch: &[usize], sequence: usize, start: usize) -> f64 {
        let mut of_sequence: HashMap<usize, usize> = HashMap::new();
        for row in minibatch {
            *of_sequence.entry((row + start) / sequence).or_default() += 1;
        }
        of_sequence.values().map(|&rows| rows * rows).sum::<usize>() as f64 / minibatch.len() as f64
    }

    #[test]
    #[cfg_attr(miri, ignore = "deals millions of rows")]
    fn minibatches_are_mixed_as_planned() {
        for (frames, slots) in [(1, 64), (7, 100), (16, 512), (48, 512), (100, 80), (500, 64)] {
            let plan = builder().batch_size(slots).window(frames * slots).plan().unwrap();
            // Until every frame was filled evenly, then 150,000 rows or more.
            let minibatches = frames + (150_000 / slots).max(100);
            let (complete, _) = dealt(frames, slots, minibatches);
            let steady = &complete[frames..];
            for sequence in [1, 5, 37, 128, 501, 1024, 10_007] {
                // Wherever the sequences start.
                let scores = (0..).zip(steady).map(|(i, rows)| shared(rows, sequence, i * 7919 % sequence));
                let measured = scores.sum::<f64>() / steady.len() as f64;
                let planned = plan.shared_rows(sequence);
                let off = planned / measured - 1.0;
                assert!(
                    off.abs() < 0.01,
                    "{frames} frames of {slots}, {sequence}: {planned} planned, {measured} measured"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 200 }, ..ProptestConfig::default() })]

        #[test]
        fn the_first_minibatch_comes_when_planned(frames in 1_usize..40, slots in 64_usize..200) {
            let plan = builder().batch_size(slots).window(frames * slots).plan().unwrap();
            let (_, first) = dealt(frames, slots, 1);
            prop_assert!(first.abs_diff(plan.first_minibatch) <= slots + frames, "{first}, planned {}", plan.first_minibatch);
        }

        #[test]
        fn memory_is_filled_with_the_largest_window_that_fits(
            // Smaller ones share frames, so that another window has other frames.
            batch_size in 64_usize..164,
            ready in 1_usize..5,
            memory in 0_usize..1 << 20,
        ) {
            let builder = builder().batch_size(batch_size).ready_frames(ready).memory(memory);
            match builder.plan() {
                Ok(plan) => {
                    prop_assert!(plan.memory <= memory);
                    let by_rows = |rows| builder.clone().window(rows).plan().unwrap();
                    prop_assert_eq!(&by_rows(plan.window), &plan);
                    prop_assert!(by_rows(plan.window + batch_size).memory > memory);
                }
                Err(BuildError::MemoryTooSmall { needed, .. }) => {
                    prop_assert!(needed > memory);
                    prop_assert_eq!(builder.memory(needed).plan().unwrap().window, batch_size);
                }
                Err(other) => panic!("{other}"),
            }
        }

        #[test]
        fn sequences_of_any_length_share_between_one_row_and_all(
            frames in 1_usize..10_000,
            slots in 1_usize..10_000,
            sequence in any::<usize>(),
        ) {
            let plan = Plan { ..builder().batch_size(slots).window(frames * slots).plan().unwrap() };
            for sequence in [sequence, sequence % (2 * frames * slots)] {
                let shared = plan.shared_rows(sequence);
                prop_assert!((0.999..1.001 * slots as f64).contains(&shared), "{shared}");
            }
        }
    }
}
