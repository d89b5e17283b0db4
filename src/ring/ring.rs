//! The ring: open frames, and the dealing of rows to them. Plain, synchronous code.

use std::sync::Arc;

use crate::memory::convert::RowReader;
use crate::memory::copy::{RowCopier, Slots};
use crate::memory::frame::Frame;
use crate::ring::deal::{Dealer, Position};
use crate::ring::slots::Place;
use crate::rows::batch::Batch;
use crate::rows::layout::Layout;

/// Rows dealt in one go: enough to read each component's rows in sequence, few enough for a small plan.
const PLAN: usize = 4096;

/// The largest ring that is written with ordinary stores: it stays in the cache until it is read.
const CACHED: usize = 1 << 20;

/// The open frames.
#[derive(Debug)]
pub(crate) struct Ring {
    layout: Arc<Layout>,
    dealer: Dealer,
    open: Vec<Frame>,
    plan: Vec<Place>,
    /// One for each component.
    readers: Vec<RowReader>,
    /// Whether rows are written past the cache.
    streaming: bool,
    /// An open frame that is full and must be taken before more rows are dealt.
    full: Option<usize>,
}

impl Ring {
    /// A ring of `open` frames, at least one, all with one layout.
    pub(crate) fn new(layout: Arc<Layout>, open: Vec<Frame>, seed: u64) -> Self {
        Ring {
            dealer: Dealer::new(open.len(), layout.rows(), seed),
            plan: Vec::with_capacity(PLAN),
            readers: layout.components().iter().map(|component| RowReader::new(component.dtype)).collect(),
            streaming: open.len() * layout.bytes() > CACHED,
            full: None,
            layout,
            open,
        }
    }

    /// Deals up to `rows` rows, where `source(component)` is a batch and its row to start at.
    ///
    /// Returns how many rows it dealt: fewer than asked for when a frame is full, see [`Ring::take_full`].
    pub(crate) fn deal<'a>(&mut self, rows: usize, source: impl Fn(usize) -> (&'a Batch, usize)) -> usize {
        if self.full.is_some() {
            return 0;
        }
        self.plan.clear();
        self.full = self.dealer.deal(rows.min(PLAN), &mut self.plan);
        self.copy(source);
        self.plan.len()
    }

    /// Copies the planned rows to their places.
    fn copy<'a>(&mut self, source: impl Fn(usize) -> (&'a Batch, usize)) {
        let copier = RowCopier::new(self.streaming);
        for (component, reader) in self.readers.iter_mut().enumerate() {
            let (batch, first) = source(component);
            let (offset, width) = (self.layout.offset(component), self.layout.row_bytes(component));
            let mut slots = Planned { open: &mut self.open, places: &self.plan, offset, width };
            reader.copy(batch, first..first + self.plan.len(), &copier, &mut slots);
        }
    }

    /// Deals on from `position`, as if all rows before it had been dealt. What is in the frames does not change.
    pub(crate) fn go_to(&mut self, position: Position) {
        self.dealer.go_to(position);
    }

    /// How many rows each open frame holds.
    pub(crate) fn filled(&self) -> Vec<u32> {
        self.dealer.filled()
    }

    /// The frame that is full and must be taken, if one is.
    pub(crate) fn full(&self) -> Option<usize> {
        self.full
    }

    /// Copies the first `rows` rows of an open frame, in the order in which they were dealt to it, to the front of `into`.
    pub(crate) fn save(&self, frame: usize, rows: usize, into: &mut Frame) {
        save(&self.open, &self.dealer, frame, rows, into);
    }

    /// Copies all rows of the frame that is full, slot by slot.
    pub(crate) fn save_full(&self, frame: usize, into: &mut Frame) {
        into.gather(self.layout.rows(), |component| move |slot| self.open[frame].row(component, slot));
    }

    /// The opposite of [`save`](Self::save).
    pub(crate) fn restore(&mut self, frame: usize, rows: usize, from: &Frame) {
        for component in 0..self.layout.n_components() {
            for i in 0..rows {
                let slot = self.dealer.place(frame, i as u32).slot as usize;
                self.open[frame].row_mut(component, slot).copy_from_slice(from.row(component, i));
            }
        }
    }

    /// Whether a frame is full and must be taken before more rows are dealt.
    pub(crate) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Takes the full frame, leaving `empty` in its place.
    ///
    /// Gives `empty` back if no frame is full.
    pub(crate) fn take_full(&mut self, empty: Frame) -> Result<Frame, Frame> {
        match self.full.take() {
            Some(frame) => Ok(std::mem::replace(&mut self.open[frame], empty)),
            None => Err(empty),
        }
    }

    /// Numbers the rows in the ring: frame by frame, the full frame's first.
    pub(crate) fn rows(&self) -> Rows<'_> {
        let mut end = if self.full.is_some() { self.layout.rows() } else { 0 };
        let mut ends = vec![end];
        ends.extend(self.dealer.filled().iter().map(|filled| {
            end += *filled as usize;
            end
        }));
        Rows { ring: self, ends }
    }

    /// Discards all rows and starts again, as if emptied so many times. Returns how many rows they were.
    pub(crate) fn clear(&mut self, times: u64) -> usize {
        let rows = self.dealer.resident() + if self.full.take().is_some() { self.layout.rows() } else { 0 };
        let emptied = self.dealer.position().emptied + times;
        self.dealer.go_to(Position { emptied, dealt: 0 });
        rows
    }

    /// Ends dealing: the rows still in the ring, to be served in random order.
    pub(crate) fn into_leftover(self) -> Leftover {
        debug_assert!(self.full.is_none(), "the full frame is taken before the ring ends");
        Leftover { places: self.dealer.shuffle_leftover(), served: 0, dealer: self.dealer, open: self.open }
    }
}

fn save(open: &[Frame], dealer: &Dealer, frame: usize, rows: usize, into: &mut Frame) {
    into.gather(rows, |component| move |i| open[frame].row(component, dealer.place(frame, i as u32).slot as usize));
}

/// Where the plan puts a component's rows.
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

/// The rows in a ring, numbered.
pub(crate) struct Rows<'a> {
    ring: &'a Ring,
    /// Where the numbers of the full frame's rows end, then where the numbers of each open frame's rows end.
    ends: Vec<usize>,
}

impl Rows<'_> {
    pub(crate) fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The `n`-th row, of less than `len()`.
    pub(crate) fn row(&self, n: usize, component: usize) -> &[u8] {
        let part = self.ends.partition_point(|&end| end <= n);
        let (frame, slot) = match (part.checked_sub(1), self.ring.full) {
            (None, full) => (full.unwrap_or(0), n),
            (Some(frame), _) => (frame, self.ring.dealer.place(frame, (n - self.ends[frame]) as u32).slot as usize),
        };
        self.ring.open[frame].row(component, slot)
    }
}

/// The rows left in the open frames when no more rows come.
#[derive(Debug)]
pub(crate) struct Leftover {
    places: Vec<Place>,
    served: usize,
    dealer: Dealer,
    open: Vec<Frame>,
}

impl Leftover {
    /// How many rows the next minibatch will have: fewer than `batch` at the very end, then none.
    pub(crate) fn next_rows(&self, batch: usize) -> usize {
        batch.min(self.len())
    }

    /// Fills `frame` with the next `rows` rows; there must be as many.
    pub(crate) fn fill(&mut self, frame: &mut Frame, rows: usize) {
        let (open, places) = (&self.open, &self.places[self.served..]);
        frame.gather(rows, |component| move |i| open[places[i].frame as usize].row(component, places[i].slot as usize));
        self.served += rows;
    }

    /// How many rows each open frame held at the close.
    pub(crate) fn filled(&self) -> Vec<u32> {
        self.dealer.filled()
    }

    /// As [`Ring::save`], for the rows there were at the close.
    pub(crate) fn save(&self, frame: usize, rows: usize, into: &mut Frame) {
        save(&self.open, &self.dealer, frame, rows, into);
    }

    /// Discards the rows not served yet. Returns how many they were.
    pub(crate) fn clear(&mut self) -> usize {
        let rows = self.len();
        self.served = self.places.len();
        rows
    }

    /// How many rows have not been served yet.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.served
    }

    /// The `n`-th of them.
    pub(crate) fn row(&self, n: usize, component: usize) -> &[u8] {
        let place = self.places[self.served + n];
        self.open[place.frame as usize].row(component, place.slot as usize)
    }
}

#[cfg(test)]
mod tests;
