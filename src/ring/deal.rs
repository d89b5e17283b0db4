//! Which frame, and which slot of it, each row goes to. Pure and seeded: no memory, no thread.
//!
//! There are M open frames of B slots. Rows are dealt in *runs*: a run gives one row to each open frame, in a freshly
//! shuffled order. So every frame takes exactly one of any M rows in sequence, and once full it holds rows spread
//! evenly over the M × B rows of the window.
//!
//! If all frames started empty they would all fill at once. The first B runs are therefore short: frame m takes part
//! in m of every M of them. After half a window frame m is m/M full, and from then on one frame completes for every B
//! rows. A completed frame starts again, empty, at once.
//!
//! A frame is filled along eight interleaved stripes, so that its rows are written at few places, yet any contiguous
//! eighth of it spans the whole window:
//!
//! ```text
//! row dealt to the frame:   0  8 16 24 …   1  9 17 25 …   2 10 18 26 …   …
//! slot:                     0  1  2  3 …  ¹⁄₈B …          ²⁄₈B …         …
//! ```
//!
//! Among many frames even eight places each are too many for narrow rows. Then eight rows in sequence go to one stripe
//! before the next stripe has its turn, which for frames so large leaves an eighth as evenly spread as can be told.

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Contiguous parts that a frame is filled along.
const STRIPES: usize = 8;

/// From so many frames, and slots of a frame, on, a stripe takes several rows at a time. The rows that a frame takes in
/// sequence are then further apart than most texts are long, and an eighth of it has at least 64 such groups.
const MANY_FRAMES: usize = 512;
const MANY_SLOTS: usize = 4096;
const GROUP: usize = 8;

/// Rows of a frame, a multiple of `batch_size`.
pub(crate) fn frame_rows(batch_size: usize, _window: usize) -> usize {
    batch_size
}

/// Where a row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) frame: u32,
    pub(crate) slot: u32,
}

/// Deals rows to frames.
#[derive(Debug)]
pub(crate) struct Dealer {
    slots: usize,
    order: Order,
    /// Rows in each open frame.
    filled: Vec<u32>,
    /// The frames of the current run, in dealing order, and how many of them were dealt to.
    run: Vec<u32>,
    dealt: usize,
    /// Short runs still to come.
    starting: usize,
    rng: Xoshiro256PlusPlus,
}

impl Dealer {
    /// Deals to `frames` frames of `slots` slots; both at least 1.
    pub(crate) fn new(frames: usize, slots: usize, seed: u64) -> Self {
        Dealer {
            slots,
            order: Order::new(frames, slots),
            filled: vec![0; frames],
            run: Vec::with_capacity(frames),
            dealt: 0,
            starting: slots,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
        }
    }

    /// Appends places for up to `rows` rows to `places`, and stops behind a row that completes a frame.
    ///
    /// Returns that frame, which counts as empty from then on: whoever owns the memory must replace it before dealing on.
    pub(crate) fn deal(&mut self, rows: usize, places: &mut Vec<Place>) -> Option<usize> {
        let mut left = rows;
        while left > 0 {
            if self.dealt == self.run.len() {
                self.next_run();
            }
            let rest = &self.run[self.dealt..];
            for &frame in &rest[..left.min(rest.len())] {
                self.dealt += 1;
                left -= 1;
                let filled = &mut self.filled[frame as usize];
                places.push(Place { frame, slot: self.order.slot(*filled as usize) as u32 });
                *filled += 1;
                if *filled as usize == self.slots {
                    *filled = 0;
                    return Some(frame as usize);
                }
            }
        }
        None
    }

    fn next_run(&mut self) {
        let frames = self.filled.len();
        self.run.clear();
        self.dealt = 0;
        while self.run.is_empty() {
            if self.starting == 0 {
                self.run.extend(0..frames as u32);
            } else {
                let step = self.slots - self.starting;
                let takes_part = |&m: &u32| (step + 1) * m as usize / frames > step * m as usize / frames;
                self.run.extend((0..frames as u32).filter(takes_part));
                self.starting -= 1;
            }
        }
        shuffle(&mut self.run, &mut self.rng);
    }

    /// How many rows the open frames hold.
    pub(crate) fn resident(&self) -> usize {
        self.filled.iter().map(|&filled| filled as usize).sum()
    }

    /// The place of a frame's `i`-th row.
    pub(crate) fn place(&self, frame: usize, i: usize) -> Place {
        Place { frame: frame as u32, slot: self.order.slot(i) as u32 }
    }

    /// How many rows each open frame holds.
    pub(crate) fn filled(&self) -> &[u32] {
        &self.filled
    }

    /// The places of the rows in the open frames, frame by frame, each frame's in the order in which they came.
    fn occupied(&self) -> impl Iterator<Item = Place> + '_ {
        let frames = self.filled.iter().enumerate();
        frames.flat_map(move |(frame, &filled)| (0..filled as usize).map(move |i| self.place(frame, i)))
    }

    /// The places of the rows in the open frames in random order, the dealer's last act.
    pub(crate) fn shuffle_leftover(&mut self) -> Vec<Place> {
        let mut rest: Vec<Place> = self.occupied().collect();
        rest.shuffle(&mut self.rng);
        rest
    }

    /// Starts again with empty frames, as at first but with other random numbers.
    pub(crate) fn restart(&mut self) {
        self.filled.fill(0);
        self.run.clear();
        self.dealt = 0;
        self.starting = self.slots;
    }
}

/// The order in which a frame's slots are filled.
#[derive(Clone, Copy, Debug)]
struct Order {
    /// Slots of a stripe; the first `longer` stripes have one more.
    stripe: usize,
    longer: usize,
    /// Whether a stripe takes `GROUP` rows at a time; then no stripe is longer.
    grouped: bool,
}

impl Order {
    fn new(frames: usize, slots: usize) -> Self {
        let grouped = frames >= MANY_FRAMES && slots >= MANY_SLOTS && slots.is_multiple_of(GROUP * STRIPES);
        Order { stripe: slots / STRIPES, longer: slots % STRIPES, grouped }
    }

    /// The slot of a frame's `i`-th row.
    fn slot(self, i: usize) -> usize {
        let start = |stripe: usize| stripe * self.stripe + stripe.min(self.longer);
        if self.grouped {
            let turn = i / GROUP;
            start(turn % STRIPES) + turn / STRIPES * GROUP + i % GROUP
        } else {
            start(i % STRIPES) + i / STRIPES
        }
    }
}

/// Fisher and Yates's shuffle in less than half the time of `rand`'s, which narrow rows notice: one multiplication a
/// draw and no rejection, which makes a draw's probability wrong by at most M / 2^64.
fn shuffle(run: &mut [u32], rng: &mut impl Rng) {
    for i in (1..run.len()).rev() {
        let scaled = u128::from(rng.next_u64()) * (i as u128 + 1);
        run.swap(i, (scaled >> 64) as usize);
    }
}

#[cfg(test)]
mod tests;
