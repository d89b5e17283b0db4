//! Random numbers that depend on what they are for, and on nothing drawn before.
//!
//! Every purpose has a *stream*, and every number in it (a run, a fill) a small generator of its own. So the randomness
//! of run 1,000,000 is there without the runs before it, and no generator's state has to be kept or saved.

use rand::{Rng, SeedableRng};
use rand_xoshiro::SplitMix64;

/// The random numbers of a ring that has been emptied so many times.
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

    /// For the order of the frames in a run.
    #[inline]
    pub(crate) fn run(&self, number: u64) -> SplitMix64 {
        generator(self.runs, number)
    }

    /// For the order of the slots in a fill of a frame.
    pub(crate) fn fill(&self, number: u64) -> SplitMix64 {
        generator(self.fills, number)
    }

    /// For the order of the rows left when no more come than were dealt.
    pub(crate) fn leftover(&self, dealt: u64) -> SplitMix64 {
        generator(self.leftovers, dealt)
    }
}

#[inline]
fn generator(stream: u64, number: u64) -> SplitMix64 {
    SplitMix64::seed_from_u64(stream ^ number)
}

/// A hash of both: other numbers under one key, and one number under other keys, have nothing in common.
#[inline]
fn mix(key: u64, number: u64) -> u64 {
    SplitMix64::seed_from_u64(key ^ number).next_u64()
}

/// A number below `bound`, which is at least 1; takes it out of the random `word`.
///
/// A word yields several numbers, with probabilities that are wrong by at most the product of their bounds / 2^64.
#[inline]
fn take(word: &mut u64, bound: usize) -> usize {
    let scaled = u128::from(*word) * bound as u128;
    *word = scaled as u64;
    (scaled >> 64) as usize
}

/// A number below `bound`, which is at least 1.
pub(crate) fn below(bound: usize, rng: &mut impl Rng) -> usize {
    take(&mut rng.next_u64(), bound)
}

/// Fisher and Yates's shuffle in less than half the time of `rand`'s, which narrow rows notice: one multiplication a
/// draw, no rejection, and as many draws from a word as leave every probability right to 2^-24.
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
