//! Random numbers that depend on their purpose, and not on numbers drawn before.
//!
//! Each purpose has a *stream*. In a stream, each number (of a run, of a fill) has a small generator of its own. So run 1,000,000
//! gets its random numbers without the runs before it, and no generator state has to be kept or saved.

use rand::{Rng, SeedableRng};
use rand_xoshiro::SplitMix64;

/// The streams of a ring that has been emptied `emptied` times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    runs: u64,
    fills: u64,
    leftovers: u64,
}

impl Streams {
    pub(crate) fn new(seed: u64, emptied: u64) -> Self {
        let key = mix(mix(0, seed), emptied);
        Streams { runs: mix(key, 1), fills: mix(key, 2), leftovers: mix(key, 3) }
    }

    /// The generator for the order of the frames in a run.
    #[inline]
    pub(crate) fn run(&self, number: u64) -> SplitMix64 {
        generator(self.runs, number)
    }

    /// The generator for the order of the slots in a fill.
    pub(crate) fn fill(&self, number: u64) -> SplitMix64 {
        generator(self.fills, number)
    }

    /// The generator for the order of the rows left in the ring, when no row comes after `dealt` rows.
    pub(crate) fn leftover(&self, dealt: u64) -> SplitMix64 {
        generator(self.leftovers, dealt)
    }
}

#[inline]
fn generator(stream: u64, number: u64) -> SplitMix64 {
    SplitMix64::seed_from_u64(stream ^ number)
}

/// A hash of `key` and `number`. If either changes, the hash is unrelated to the one before.
#[inline]
fn mix(key: u64, number: u64) -> u64 {
    SplitMix64::seed_from_u64(key ^ number).next_u64()
}

/// A number below `bound`, which is at least 1. Takes the number out of the random `word`.
///
/// One word gives several numbers. Their probabilities are wrong by at most the product of their bounds, divided by 2^64.
#[inline]
fn take(word: &mut u64, bound: usize) -> usize {
    let scaled = u128::from(*word) * bound as u128;
    *word = scaled as u64;
    (scaled >> 64) as usize
}

/// A random number below `bound`, which is at least 1.
pub(crate) fn below(bound: usize, rng: &mut impl Rng) -> usize {
    take(&mut rng.next_u64(), bound)
}

/// Shuffles as Fisher and Yates do, in less than half the time of `rand`'s shuffle. With narrow rows this makes a difference. Each
/// draw takes one multiplication and no rejection. Several draws share a word, as long as each probability is right to 2^-24.
#[inline]
pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut impl Rng) {
    let mut left = items.len();
    while left > 1 {
        let draws = match left {
            ..=1024 => 4,
            1025..=1_048_576 => 2,
            _ => 1,
        };
        let mut word = rng.next_u64();
        for _ in 0..draws.min(left - 1) {
            items.swap(left - 1, take(&mut word, left));
            left -= 1;
        }
    }
}
