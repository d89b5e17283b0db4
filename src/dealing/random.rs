//! Random numbers that depend on their purpose, and not on numbers drawn before.
//!
//! Each purpose has a *stream*. In a stream, each number (of a run, of a fill) has a small generator of its own. So run 1,000,000
//! gets its random numbers without the runs before it, and no generator state has to be kept or saved.
//!
//! Everything here is this crate's own: snapshots rely on these numbers, so an update of another crate must not change them.

/// A generator of random numbers: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Generator(u64);

impl Generator {
    #[inline]
    pub(crate) fn new(seed: u64) -> Self {
        Generator(seed)
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to 1, which is not included.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u32 << 24) as f32
    }
}

/// The streams of a ring that has been emptied `emptied` times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    runs: u64,
    fills: u64,
    leftovers: u64,
    epochs: u64,
}

impl Streams {
    pub(crate) fn new(seed: u64, emptied: u64) -> Self {
        let key = mix(mix(0, seed), emptied);
        Streams { runs: mix(key, 1), fills: mix(key, 2), leftovers: mix(key, 3), epochs: mix(key, 4) }
    }

    /// The generator for the order of the frames in a run.
    #[inline]
    pub(crate) fn run(&self, number: u64) -> Generator {
        generator(self.runs, number)
    }

    /// The generator for the order of the slots in a fill.
    pub(crate) fn fill(&self, number: u64) -> Generator {
        generator(self.fills, number)
    }

    /// The generator for the order of the rows left in the ring, when no row comes after `dealt` rows.
    pub(crate) fn leftover(&self, dealt: u64) -> Generator {
        generator(self.leftovers, dealt)
    }

    /// The generator for the order of the shards in an epoch of a replay.
    pub(crate) fn epoch(&self, number: u64) -> Generator {
        generator(self.epochs, number)
    }
}

#[inline]
fn generator(stream: u64, number: u64) -> Generator {
    Generator::new(stream ^ number)
}

/// A hash of `key` and `number`. If either changes, the hash is unrelated to the one before.
#[inline]
fn mix(key: u64, number: u64) -> u64 {
    Generator::new(key ^ number).next()
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
pub(crate) fn below(bound: usize, rng: &mut Generator) -> usize {
    take(&mut rng.next(), bound)
}

/// Shuffles as Fisher and Yates do, in less than half the time of `rand`'s shuffle. With narrow rows this makes a difference. Each
/// draw takes one multiplication and no rejection. Several draws share a word, as long as each probability is right to 2^-24.
#[inline]
pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut Generator) {
    let mut left = items.len();
    while left > 1 {
        let draws = match left {
            ..=1024 => 4,
            1025..=1_048_576 => 2,
            _ => 1,
        };
        let mut word = rng.next();
        for _ in 0..draws.min(left - 1) {
            items.swap(left - 1, take(&mut word, left));
            left -= 1;
        }
    }
}
