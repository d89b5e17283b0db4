//! Which frame, and which slot of it, each row goes to. Pure and seeded: no memory, no thread.
//!
//! There are M open frames of B slots. Rows are dealt in *runs*: a run gives one row to each open frame, in an order of
//! its own. So every frame takes exactly one of any M rows in sequence, and once full it holds rows spread evenly over
//! the M × B rows of the window.
//!
//! If all frames started empty they would all fill at once. The first B runs are therefore short: frame m takes part
//! in m of every M of them. After half a window frame m is m/M full, and from then on one frame completes for every B
//! rows. A completed frame starts its next *fill*, empty, at once.
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
//! A large frame is filled along 32 stripes, which take its rows in turn, so that its rows are written at few places,
//! yet any contiguous part of it spans the whole window. Each fill starts at a slot of its own, chosen at random, so
//! that no slot always has the oldest row. With four stripes of four slots, and a fill that starts at slot 6:
//!
//! ```text
//! slot                0  1 │ 2  3  4  5 │ 6  7  8  9 │10 11 12 13 │14 15
//! row of the frame    9 13 │ 3  7 11 15 │ 0  4  8 12 │ 2  6 10 14 │ 1  5
//! ```
//!
//! Among many frames even 32 places each are too many to write in turn. Then up to eight rows in sequence go to one
//! stripe before the next stripe has its turn. A frame of few slots is filled in random order.
//!
//! # Position
//!
//! The order of a run depends on the seed, on how often the ring was emptied, and on the number of the run; where a
//! fill starts, on the number of the fill. Nothing random is carried along, so dealing goes on from any [`Position`]
//! without the rows before it. Runs are numbered from 0, short ones and those without a row included. Fill n of frame m
//! has the number n × M + m.

use crate::ring::random::{Streams, shuffle};
use crate::ring::slots::{Place, Slots};

/// The version of the order in which rows are dealt: the same configuration, seed and rows give the same minibatches,
/// bit for bit, in every release of this crate that has the same dealing version.
pub const DEALING_VERSION: u32 = 1;

/// Rows of a frame, a multiple of `batch_size`: one minibatch, or so many small ones that a frame has [`SHARED`] rows, as long
/// as there are at least four frames.
///
/// A frame's slots are filled in random order, so the minibatches that share it are random parts of it.
pub(crate) fn frame_rows(batch_size: usize, window: usize) -> usize {
    let most = window / FEWEST_FRAMES / batch_size;
    batch_size * SHARED.div_ceil(batch_size).min(most).max(1)
}

/// Rows of a frame that several minibatches share, at least.
const SHARED: usize = 64;

/// Minibatches share a frame only where the window has so many frames.
const FEWEST_FRAMES: usize = 4;

/// How far a ring has dealt: with the seed, all there is to know about what comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// How often the ring was emptied.
    pub(crate) emptied: u64,
    /// Rows dealt since.
    pub(crate) dealt: u64,
}

/// Places that are planned at once, or one run if that has more.
const PLAN: usize = 64;

/// Deals rows to frames.
#[derive(Debug)]
pub(crate) struct Dealer {
    seed: u64,
    position: Position,
    streams: Streams,
    runs: Runs,
    /// The places of the next rows, whole runs, and how many of them have been given out.
    planned: Vec<Place>,
    done: usize,
    /// Which of them complete their frame, the first one last. All are in the last run.
    completing: Vec<usize>,
    /// Rows in each open frame once all that is planned is dealt.
    filled: Vec<u32>,
    /// The next run to plan, and the first that may complete a frame.
    run: u64,
    first_full: u64,
    slots: Slots,
}

impl Dealer {
    /// Deals to `frames` frames of `slots` slots; both at least 1.
    pub(crate) fn new(frames: usize, slots: usize, seed: u64) -> Self {
        let mut dealer = Dealer {
            seed,
            position: Position::default(),
            streams: Streams::new(seed, 0),
            runs: Runs::new(frames, slots),
            planned: Vec::with_capacity(frames + PLAN),
            done: 0,
            completing: Vec::new(),
            filled: vec![0; frames],
            run: 0,
            first_full: 0,
            slots: Slots::new(frames, slots),
        };
        dealer.go_to(Position::default());
        dealer
    }

    /// Where dealing stands.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Deals on from `position`, as if all rows before it had been dealt.
    pub(crate) fn go_to(&mut self, position: Position) {
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

    /// Appends places for up to `rows` rows to `places`, and stops behind a row that completes a frame.
    ///
    /// Returns that frame, which counts as empty from then on: the owner of the memory must replace it before dealing on.
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

    /// Plans the next runs, but none behind a frame that is completed.
    fn plan(&mut self) {
        if self.run > self.first_full {
            self.start_full_ones_again();
        }
        self.planned.clear();
        self.completing.clear();
        self.done = 0;
        while self.planned.len() < PLAN && self.run <= self.first_full {
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

    /// How many rows each open frame holds.
    pub(crate) fn filled(&self) -> Vec<u32> {
        let mut filled = self.filled.clone();
        for place in &self.planned[self.done..] {
            filled[place.frame as usize] -= 1;
        }
        // Completed frames are open no more.
        filled.iter().map(|&filled| filled % self.runs.slots as u32).collect()
    }

    /// How many rows the open frames hold.
    pub(crate) fn resident(&self) -> usize {
        self.filled().iter().map(|&filled| filled as usize).sum()
    }

    /// The place of a frame's `i`-th row.
    pub(crate) fn place(&self, frame: usize, i: u32) -> Place {
        Place { frame: frame as u32, slot: self.slots.slot(frame, i) }
    }

    /// The places of the rows in the open frames, frame by frame, each frame's in the order in which they came.
    fn occupied(&self) -> impl Iterator<Item = Place> + '_ {
        let frames = self.filled().into_iter().enumerate();
        frames.flat_map(move |(frame, filled)| (0..filled).map(move |i| self.place(frame, i)))
    }

    /// The places of the rows in the open frames in random order.
    pub(crate) fn shuffle_leftover(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self.occupied().collect();
        shuffle(&mut places, &mut self.streams.leftover(self.position.dealt));
        places
    }
}

/// How many rows runs have, and when frames complete: all that does not depend on the seed.
///
/// Frames complete in the order in which their fills began. The first fills all begin with run 0, and the frame that takes
/// part in most short runs completes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    frames: u64,
    slots: u64,
}

impl Runs {
    pub(crate) fn new(frames: usize, slots: usize) -> Self {
        Runs { frames: frames as u64, slots: slots as u64 }
    }

    /// Rows that a frame is given in the first `runs` runs.
    fn given(self, frame: usize, runs: u64) -> u64 {
        runs.min(self.slots) * frame as u64 / self.frames + runs.saturating_sub(self.slots)
    }

    /// Rows of the first `runs` runs: what all frames are given.
    fn rows_before(self, runs: u64) -> u64 {
        // The floors of `short * frame / frames`, summed over the frames.
        let short = runs.min(self.slots);
        let at_start = (short * (self.frames - 1) + gcd(short, self.frames) - self.frames) / 2;
        at_start + (runs - short) * self.frames
    }

    /// Rows dealt before the fill began that completes as number `n` of all, from 0.
    pub(crate) fn rows_before_fill(self, n: u64) -> u64 {
        let (fill, frame) = (n / self.frames, self.frames - 1 - n % self.frames);
        if fill == 0 {
            return 0;
        }
        let run = self.slots + fill * self.slots - self.slots * frame / self.frames;
        self.rows_before(run)
    }

    /// How many frames have completed by the end of the last whole run of the first `rows` rows.
    pub(crate) fn completed(self, rows: u64) -> u64 {
        let run = self.containing(rows);
        (0..self.frames as usize).map(|frame| self.given(frame, run) / self.slots).sum()
    }

    /// The run that the next row is part of once `rows` are dealt.
    fn containing(self, rows: u64) -> u64 {
        let at_start = self.rows_before(self.slots);
        if rows >= at_start {
            return self.slots + (rows - at_start) / self.frames;
        }
        // Short runs have half as many rows as there are other frames, on average. The estimate is at most one too low.
        let estimate = 2 * rows / (self.frames - 1);
        estimate + u64::from(self.rows_before(estimate + 1) <= rows)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
