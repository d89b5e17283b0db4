//! Copies rows to where the plan says, on one thread or several.
//!
//! Several threads share the work by frame: each reads the whole plan and copies the rows of its own frames, so none
//! writes where another does, and what is written does not depend on their number.

use std::panic::resume_unwind;
use std::thread;

use crate::memory::convert::RowReader;
use crate::memory::copy::{RowCopier, Slots};
use crate::memory::frame::Frame;
use crate::ring::deal::Place;
use crate::rows::batch::Batch;
use crate::rows::layout::Layout;

/// The largest ring whose frames are written with ordinary stores: it stays in the cache until it is read.
const CACHED: usize = 1 << 20;

/// Fewer bytes than this are copied sooner than threads are started.
const WORTH_THREADS: usize = 1 << 20;

/// Copies rows to open frames.
#[derive(Debug)]
pub(crate) struct Spreader {
    /// For each thread, for each component.
    readers: Vec<Vec<RowReader>>,
    streaming: bool,
}

impl Spreader {
    /// For a ring of `frames` frames; `threads` is at least 1.
    pub(crate) fn new(layout: &Layout, frames: usize, threads: usize) -> Self {
        let readers = || layout.components().iter().map(|component| RowReader::new(component.dtype)).collect();
        Spreader {
            readers: (0..threads.min(frames)).map(|_| readers()).collect(),
            streaming: frames * layout.bytes() > CACHED,
        }
    }

    /// Copies the planned rows, where `source(component)` is a batch and its row to start at.
    pub(crate) fn spread<'a>(
        &mut self,
        layout: &Layout,
        open: &mut [Frame],
        plan: &[Place],
        source: impl Fn(usize) -> (&'a Batch, usize) + Sync,
    ) {
        let row_bytes: usize = (0..layout.n_components()).map(|component| layout.row_bytes(component)).sum();
        let threads = if plan.len() * row_bytes < WORTH_THREADS { 1 } else { self.readers.len() };
        let job = &Job { layout, plan, streaming: self.streaming, source };
        if threads == 1 {
            return job.copy_all(open, &mut self.readers[0]);
        }
        let share = open.len().div_ceil(threads);
        let shares = open.chunks_mut(share).zip((0..).step_by(share)).zip(&mut self.readers);
        thread::scope(|scope| {
            let workers: Vec<_> = shares
                .map(|((open, first), readers)| scope.spawn(move || job.copy_share(open, first, readers)))
                .collect();
            for worker in workers {
                // Foreign memory may panic; its message must not be lost.
                worker.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
        });
    }
}

/// What is to be copied.
struct Job<'a, S> {
    layout: &'a Layout,
    plan: &'a [Place],
    streaming: bool,
    source: S,
}

impl<'a, S: Fn(usize) -> (&'a Batch, usize)> Job<'_, S> {
    fn copy_all(&self, open: &mut [Frame], readers: &mut [RowReader]) {
        let copier = RowCopier::new(self.streaming);
        for (component, reader) in readers.iter_mut().enumerate() {
            let (batch, first) = (self.source)(component);
            let (offset, width) = (self.layout.offset(component), self.layout.row_bytes(component));
            reader.read(batch, first..first + self.plan.len(), |first, rows| {
                let mut slots = Planned { open, places: &self.plan[first..], offset, width };
                copier.copy(rows, width, &mut slots);
            });
        }
    }

    /// Copies the rows of some frames, the first of which has the number `first_frame`.
    fn copy_share(&self, open: &mut [Frame], first_frame: usize, readers: &mut [RowReader]) {
        let copier = RowCopier::new(self.streaming);
        for (component, reader) in readers.iter_mut().enumerate() {
            let (batch, first) = (self.source)(component);
            let (offset, width) = (self.layout.offset(component), self.layout.row_bytes(component));
            for (row, place) in (first..).zip(self.plan) {
                let frame = (place.frame as usize).wrapping_sub(first_frame);
                if frame < open.len() {
                    let place = Place { frame: frame as u32, slot: place.slot };
                    reader.read(batch, row..row + 1, |_, row| {
                        copier.copy(row, width, &mut Planned { open, places: &[place], offset, width });
                    });
                }
            }
        }
    }
}

/// Where the plan says that a component's rows go.
struct Planned<'a> {
    open: &'a mut [Frame],
    places: &'a [Place],
    /// Where the component's block starts in a frame, and how wide its rows are.
    offset: usize,
    width: usize,
}

impl Slots for Planned<'_> {
    #[inline]
    fn slot(&mut self, i: usize) -> &mut [u8] {
        let Place { frame, slot } = self.places[i];
        let start = self.offset + slot as usize * self.width;
        &mut self.open[frame as usize].all_mut()[start..][..self.width]
    }
}
