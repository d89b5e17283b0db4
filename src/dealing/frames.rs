//! The ring of open frames, and the dealing of rows to them. Plain, synchronous code.

use std::sync::Arc;

use crate::dealing::dealer::{Dealer, DealtTo};
use crate::dealing::slots::Place;
use crate::memory::convert::RowReader;
use crate::memory::copy::{RowCopier, Slots};
use crate::memory::frame::Frame;
use crate::rows::batch::Batch;
use crate::rows::layout::Layout;
use crate::rows::values::ValueCounts;

/// The most rows of one call of `deal`: enough to read each component's rows in sequence, and few enough for a small plan.
const MOST_DEALT: usize = 4096;

/// The size of the largest ring that is written with ordinary stores, in bytes. Such a ring stays in the cache until it is read.
const CACHED: usize = 1 << 20;

/// The open frames, and the dealer that chooses the place of each row.
#[derive(Debug)]
pub(crate) struct OpenFrames {
    layout: Arc<Layout>,
    dealer: Dealer,
    open: Vec<Frame>,
    plan: Vec<Place>,
    /// One reader for each component.
    readers: Vec<RowReader>,
    /// Whether rows are written past the cache.
    streaming: bool,
    /// The open frame that is full, if there is one. It must be taken before more rows are dealt.
    full: Option<usize>,
}

impl OpenFrames {
    /// Makes a ring of the frames `open`: at least one, all with the layout `layout`.
    pub(crate) fn new(layout: Arc<Layout>, open: Vec<Frame>, seed: u64) -> Self {
        OpenFrames {
            dealer: Dealer::new(open.len(), layout.rows(), seed),
            plan: Vec::with_capacity(MOST_DEALT),
            readers: layout.components().iter().map(|component| RowReader::new(component.dtype)).collect(),
            streaming: open.len() * layout.bytes() > CACHED,
            full: None,
            layout,
            open,
        }
    }

    /// Deals up to `rows` rows. `source(component)` gives a batch, and the row of that batch to start at.
    ///
    /// Returns the number of dealt rows. It may be less than `rows`: this call deals at most `MOST_DEALT` rows, and stops when a frame
    /// is full. While a frame is full, it deals nothing: see [`OpenFrames::take_full`].
    pub(crate) fn deal<'a>(&mut self, rows: usize, source: impl Fn(usize) -> (&'a Batch, usize)) -> usize {
        if self.full.is_some() {
            return 0;
        }
        self.plan.clear();
        self.full = self.dealer.deal(rows.min(MOST_DEALT), &mut self.plan);
        self.copy(source);
        self.plan.len()
    }

    /// The rows of each component whose values are not finite or overflowed, counted since the last call.
    pub(crate) fn take_counts(&mut self) -> impl Iterator<Item = ValueCounts> {
        self.readers.iter_mut().map(RowReader::take_counts)
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

    /// Continues from `position`, as if all rows before it had been dealt. Does not change the contents of the frames.
    pub(crate) fn go_to(&mut self, position: DealtTo) {
        self.dealer.go_to(position);
    }

    /// The number of rows that each open frame holds. A full frame counts as empty.
    pub(crate) fn filled(&self) -> Vec<u32> {
        self.dealer.filled()
    }

    /// The frame that is full and must be taken, if there is one.
    pub(crate) fn full(&self) -> Option<usize> {
        self.full
    }

    /// Copies the first `rows` rows of an open frame to the front of `into`, in the order in which they were dealt to the frame.
    pub(crate) fn save(&self, frame: usize, rows: usize, into: &mut Frame) {
        save(&self.open, &self.dealer, frame, rows, into);
    }

    /// Copies all rows of the full frame, slot by slot.
    pub(crate) fn save_full(&self, frame: usize, into: &mut Frame) {
        into.gather(self.layout.rows(), |component| move |slot| self.open[frame].row(component, slot));
    }

    /// Copies the first `rows` rows of `from` to an open frame: the reverse of [`save`](Self::save).
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

    /// Takes the full frame, and puts `empty` in its place.
    ///
    /// Returns `empty` as the error if no frame is full.
    pub(crate) fn take_full(&mut self, empty: Frame) -> Result<Frame, Frame> {
        match self.full.take() {
            Some(frame) => Ok(std::mem::replace(&mut self.open[frame], empty)),
            None => Err(empty),
        }
    }

    /// Numbers the rows in the ring: first the rows of the full frame, then frame by frame.
    pub(crate) fn rows(&self) -> Rows<'_> {
        let mut end = if self.full.is_some() { self.layout.rows() } else { 0 };
        let mut ends = vec![end];
        ends.extend(self.dealer.filled().iter().map(|filled| {
            end += *filled as usize;
            end
        }));
        Rows { ring: self, ends }
    }

    /// Discards all rows and starts again, as if the ring was emptied `times` times. Returns the number of discarded rows.
    pub(crate) fn clear(&mut self, times: u64) -> usize {
        let rows = self.dealer.resident() + if self.full.take().is_some() { self.layout.rows() } else { 0 };
        let emptied = self.dealer.position().emptied + times;
        self.dealer.go_to(DealtTo { emptied, dealt: 0 });
        rows
    }

    /// Ends dealing. Returns the rows that are still in the ring, to be served in random order.
    pub(crate) fn into_leftover(self) -> Leftover {
        debug_assert!(self.full.is_none(), "the full frame is taken before the ring ends");
        Leftover { places: self.dealer.shuffle_leftover(), served: 0, dealer: self.dealer, open: self.open }
    }
}

fn save(open: &[Frame], dealer: &Dealer, frame: usize, rows: usize, into: &mut Frame) {
    into.gather(rows, |component| move |i| open[frame].row(component, dealer.place(frame, i as u32).slot as usize));
}

/// The slots that the plan has for a component's rows.
struct Planned<'a> {
    open: &'a mut [Frame],
    places: &'a [Place],
    /// Where the component's block starts in a frame, in bytes.
    offset: usize,
    /// The size of a row, in bytes.
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

/// The numbered rows in a ring.
pub(crate) struct Rows<'a> {
    ring: &'a OpenFrames,
    /// The end of the numbers of the full frame's rows, then the end of the numbers of each open frame's rows.
    ends: Vec<usize>,
}

impl Rows<'_> {
    pub(crate) fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The row with the number `n`, which is less than `len()`.
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
    /// The number of rows of the next `batch` rows that are left: fewer than `batch` at the end, then 0.
    pub(crate) fn next_rows(&self, batch: usize) -> usize {
        batch.min(self.len())
    }

    /// Fills `frame` with the next `rows` rows. So many rows must be left.
    pub(crate) fn fill(&mut self, frame: &mut Frame, rows: usize) {
        let (open, places) = (&self.open, &self.places[self.served..]);
        frame.gather(rows, |component| move |i| open[places[i].frame as usize].row(component, places[i].slot as usize));
        self.served += rows;
    }

    /// The number of rows that each open frame held when dealing ended.
    pub(crate) fn filled(&self) -> Vec<u32> {
        self.dealer.filled()
    }

    /// As [`OpenFrames::save`], for the rows that the frame held when dealing ended.
    pub(crate) fn save(&self, frame: usize, rows: usize, into: &mut Frame) {
        save(&self.open, &self.dealer, frame, rows, into);
    }

    /// Discards the rows that are not served yet. Returns their number.
    pub(crate) fn clear(&mut self) -> usize {
        let rows = self.len();
        self.served = self.places.len();
        rows
    }

    /// The number of rows that are not served yet.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.served
    }

    /// The `n`-th row that is not served yet, counted from 0.
    pub(crate) fn row(&self, n: usize, component: usize) -> &[u8] {
        let place = self.places[self.served + n];
        self.open[place.frame as usize].row(component, place.slot as usize)
    }
}

#[cfg(test)]
mod tests;
