//! Chooses the frame and the slot that each row goes to. Pure and seeded: no memory, no thread.
//!
//! There are M open frames of B slots. The dealer deals rows in *runs*. A run gives one row to each open frame, and each run has its
//! own random order of the frames. So each frame takes exactly one of the M rows of each run. A full frame holds rows that are
//! spread evenly over the M × B rows of the window.
//!
//! If every run gave a row to each frame from the start, all frames would be full at the same time. So the first B runs are
//! short: frame m takes part in m of every M short runs. After the short runs, which have half a window of rows, frame m is m/M
//! full. From then on one frame completes for every B rows. A completed frame starts its next *fill* at once, empty.
//!
//! ```text
//!            short runs                runs of four rows
//! frame 3  │ · x x x  · x x x │ x x ┃ x x x x x x x x ┃ x x …
//! frame 2  │ · x · x  · x · x │ x x x x ┃ x x x x x x x x ┃ …      x  takes part in the run
//! frame 1  │ · · · x  · · · x │ x x x x x x ┃ x x x x x x x …      ┃  full: served, and the next fill begins
//! frame 0  │ · · · ·  · · · · │ x x x x x x x x ┃ x x x x x …
//! run        0 1 2 3  4 5 6 7   8 9 …                              M = 4, B = 8
//! ```
//!
//! # Slots
//!
//! A large frame has up to 32 stripes, which take its rows in turn. So the writer writes at few places, and each contiguous part of
//! the frame spans the whole window. Each fill starts at a random slot, so that no slot always has the oldest row. This example
//! has four stripes of four slots, and a fill that starts at slot 6:
//!
//! ```text
//! slot                0  1 │ 2  3  4  5 │ 6  7  8  9 │10 11 12 13 │14 15
//! row of the frame    9 13 │ 3  7 11 15 │ 0  4  8 12 │ 2  6 10 14 │ 1  5
//! ```
//!
//! If there are many frames, 32 places in each are too many to write in turn. Then up to eight consecutive rows of a frame go to
//! one stripe before the next stripe has its turn. A frame with fewer than 128 slots has no stripes: it is filled in random order.
//!
//! # Position
//!
//! The order of a run depends on the seed, on how often the ring was emptied, and on the number of the run. The start of a fill
//! depends on the seed, on how often the ring was emptied, and on the number of the fill. The dealer keeps no random state, so
//! dealing can go on from any [`DealtTo`] without the rows before it. Runs are numbered from 0. Short runs, and runs without a
//! row, have numbers, too. Fill n of frame m has the number n × M + m.

use crate::dealing::random::{Streams, shuffle};
use crate::dealing::slots::{Place, Slots};

/// The version of the order in which rows are dealt. The same configuration, seed and rows give the same minibatches, bit for
/// bit, in every release of this crate with the same dealing version.
pub const DEALING_VERSION: u32 = 1;

/// The number of rows of a frame, a multiple of `batch_size`. A frame has one minibatch. If minibatches are small, several share a
/// frame, until it has [`SHARED`] rows or the window has only [`FEWEST_FRAMES`] frames.
///
/// Such a frame is filled in random order, so each minibatch is a random part of the frame.
pub(crate) fn frame_rows(batch_size: usize, window: usize) -> usize {
    let most = window / FEWEST_FRAMES / batch_size;
    batch_size * SHARED.div_ceil(batch_size).min(most).max(1)
}

/// A frame with so many rows needs no more minibatches.
const SHARED: usize = 64;

/// Minibatches share a frame only if the window still has so many frames.
const FEWEST_FRAMES: usize = 4;

/// How far a ring has dealt. The position and the seed determine how dealing goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DealtTo {
    /// How often the ring was emptied.
    pub(crate) emptied: u64,
    /// The rows dealt since the ring was last emptied.
    pub(crate) dealt: u64,
}

/// The dealer plans whole runs until it has so many places.
const PLANNED: usize = 64;

/// Deals rows to frames.
#[derive(Debug)]
pub(crate) struct Dealer {
    seed: u64,
    position: DealtTo,
    streams: Streams,
    runs: Runs,
    /// The places of the next rows, in whole runs.
    planned: Vec<Place>,
    /// How many of the planned places have been given out.
    done: usize,
    /// The indices of the planned places that complete their frame, in descending order. All are in the last planned run.
    completing: Vec<usize>,
    /// The rows in each open frame once all planned rows are dealt.
    filled: Vec<u32>,
    /// The next run to plan.
    run: u64,
    /// The first run that may complete a frame.
    first_full: u64,
    slots: Slots,
}

impl Dealer {
    /// Makes a dealer for `frames` frames of `slots` slots. Both are at least 1.
    pub(crate) fn new(frames: usize, slots: usize, seed: u64) -> Self {
        let mut dealer = Dealer {
            seed,
            position: DealtTo::default(),
            streams: Streams::new(seed, 0),
            runs: Runs::new(frames, slots),
            planned: Vec::with_capacity(frames + PLANNED),
            done: 0,
            completing: Vec::new(),
            filled: vec![0; frames],
            run: 0,
            first_full: 0,
            slots: Slots::new(frames, slots),
        };
        dealer.go_to(DealtTo::default());
        dealer
    }

    /// The position of the next row.
    pub(crate) fn position(&self) -> DealtTo {
        self.position
    }

    /// Continues from `position`, as if all rows before it had been dealt.
    pub(crate) fn go_to(&mut self, position: DealtTo) {
        self.position = position;
        self.streams = Streams::new(self.seed, position.emptied);
        self.run = self.runs.containing(position.dealt);
        let done = position.dealt - self.runs.rows_before(self.run);
        for frame in 0..self.filled.len() {
            let given = self.runs.given(frame, self.run);
            self.filled[frame] = (given % self.runs.slots) as u32;
            self.start_fill(frame, given / self.runs.slots);
        }
        self.foresee();
        self.plan();
        self.done = done as usize;
        self.completing.retain(|&i| i >= self.done);
    }

    /// Appends the places of up to `rows` rows to `places`. Stops after a row that completes a frame, and returns that frame.
    ///
    /// The returned frame counts as empty from then on. The owner of the memory must replace the frame before the next call.
    pub(crate) fn deal(&mut self, rows: usize, places: &mut Vec<Place>) -> Option<usize> {
        let mut left = rows;
        while left > 0 {
            while self.done == self.planned.len() {
                self.plan();
            }
            let stop = self.completing.last().map_or(self.planned.len(), |&i| i + 1);
            let some = &self.planned[self.done..stop.min(self.done + left)];
            places.extend_from_slice(some);
            self.done += some.len();
            left -= some.len();
            self.position.dealt += some.len() as u64;
            if let Some(i) = self.completing.pop_if(|i| *i < self.done) {
                return Some(self.planned[i].frame as usize);
            }
        }
        None
    }

    /// Plans the next runs. Plans no run after one that completes a frame.
    fn plan(&mut self) {
        if self.run > self.first_full {
            self.start_full_ones_again();
        }
        self.planned.clear();
        self.completing.clear();
        self.done = 0;
        while self.planned.len() < PLANNED && self.run <= self.first_full {
            self.plan_run();
        }
    }

    fn plan_run(&mut self) {
        let before = self.planned.len();
        if self.run < self.runs.slots {
            for frame in 0..self.filled.len() {
                if self.runs.given(frame, self.run + 1) > self.runs.given(frame, self.run) {
                    self.planned.push(self.place(frame, self.filled[frame]));
                    self.filled[frame] += 1;
                }
            }
        } else {
            self.slots.next(&self.filled, &mut self.planned);
            self.filled.iter_mut().for_each(|filled| *filled += 1);
        }
        shuffle(&mut self.planned[before..], &mut self.streams.run(self.run));
        if self.run == self.first_full {
            let full = |i: &usize| u64::from(self.filled[self.planned[*i].frame as usize]) == self.runs.slots;
            self.completing.extend((before..self.planned.len()).rev().filter(full));
        }
        self.run += 1;
    }

    fn start_full_ones_again(&mut self) {
        for frame in 0..self.filled.len() {
            if u64::from(self.filled[frame]) == self.runs.slots {
                self.filled[frame] = 0;
                self.start_fill(frame, self.runs.given(frame, self.run) / self.runs.slots);
            }
        }
        self.foresee();
    }

    fn start_fill(&mut self, frame: usize, fill: u64) {
        let number = fill * self.runs.frames + frame as u64;
        self.slots.shuffle(frame, &mut self.streams.fill(number));
    }

    /// Finds the first run that may complete a frame.
    fn foresee(&mut self) {
        let most = self.filled.iter().max().map_or(0, |&most| most.into());
        self.first_full = self.run + self.runs.slots - 1 - most;
    }

    /// The number of rows that each open frame holds.
    pub(crate) fn filled(&self) -> Vec<u32> {
        let mut filled = self.filled.clone();
        for place in &self.planned[self.done..] {
            filled[place.frame as usize] -= 1;
        }
        // A completed frame counts as empty.
        filled.iter().map(|&filled| filled % self.runs.slots as u32).collect()
    }

    /// The number of rows that all open frames hold.
    pub(crate) fn resident(&self) -> usize {
        self.filled().iter().map(|&filled| filled as usize).sum()
    }

    /// The place of a frame's `i`-th row.
    pub(crate) fn place(&self, frame: usize, i: u32) -> Place {
        Place { frame: frame as u32, slot: self.slots.slot(frame, i) }
    }

    /// The places of the rows in the open frames, frame by frame. The rows of a frame are in the order in which they came.
    fn occupied(&self) -> impl Iterator<Item = Place> + '_ {
        let frames = self.filled().into_iter().enumerate();
        frames.flat_map(move |(frame, filled)| (0..filled).map(move |i| self.place(frame, i)))
    }

    /// The places of the rows in the open frames, in random order.
    pub(crate) fn shuffle_leftover(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self.occupied().collect();
        shuffle(&mut places, &mut self.streams.leftover(self.position.dealt));
        places
    }
}

/// Computes what does not depend on the seed: the rows of runs, and when frames complete.
///
/// Frames complete in the order in which their fills began. The first fills all begin with run 0. Of these, the fill of the frame
/// that takes part in the most short runs completes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    frames: u64,
    slots: u64,
}

impl Runs {
    pub(crate) fn new(frames: usize, slots: usize) -> Self {
        Runs { frames: frames as u64, slots: slots as u64 }
    }

    /// The number of rows that a frame gets in the first `runs` runs.
    fn given(self, frame: usize, runs: u64) -> u64 {
        runs.min(self.slots) * frame as u64 / self.frames + runs.saturating_sub(self.slots)
    }

    /// The number of rows of the first `runs` runs: the rows that all frames get in these runs.
    fn rows_before(self, runs: u64) -> u64 {
        // The sum over all frames of `short * frame / frames`, rounded down.
        let short = runs.min(self.slots);
        let at_start = (short * (self.frames - 1) + gcd(short, self.frames) - self.frames) / 2;
        at_start + (runs - short) * self.frames
    }

    /// The number of rows that were dealt before a fill began. The fill is the `n`-th to complete, counted from 0.
    pub(crate) fn rows_before_fill(self, n: u64) -> u64 {
        let (fill, frame) = (n / self.frames, self.frames - 1 - n % self.frames);
        if fill == 0 {
            return 0;
        }
        let run = self.slots + fill * self.slots - self.slots * frame / self.frames;
        self.rows_before(run)
    }

    /// The number of frames that are complete at the end of the last whole run within the first `rows` rows.
    pub(crate) fn completed(self, rows: u64) -> u64 {
        let run = self.containing(rows);
        (0..self.frames as usize).map(|frame| self.given(frame, run) / self.slots).sum()
    }

    /// The run of the next row, once `rows` rows are dealt.
    fn containing(self, rows: u64) -> u64 {
        let at_start = self.rows_before(self.slots);
        if rows >= at_start {
            return self.slots + (rows - at_start) / self.frames;
        }
        // A short run has (frames - 1) / 2 rows on average. The estimate is right or one too low.
        let estimate = 2 * rows / (self.frames - 1);
        estimate + u64::from(self.rows_before(estimate + 1) <= rows)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
