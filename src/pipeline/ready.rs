//! Full frames that wait for consumers, and the empty ones that take their place.

use std::collections::VecDeque;
use std::mem;

use crate::memory::frame::Frame;
use crate::memory::pool::Pool;
use crate::pipeline::config::Config;

/// A full frame that waits for a consumer.
#[derive(Debug)]
pub(crate) struct ReadyFrame {
    pub(crate) frame: Frame,
    pub(crate) rows: usize,
    pub(crate) ordinal: u64,
}

/// The frames that are not open.
#[derive(Debug)]
pub(crate) struct Frames {
    /// Oldest first.
    ready: VecDeque<ReadyFrame>,
    /// Rows in them, also while the writer has borrowed them.
    ready_rows: usize,
    most_ready: usize,
    next_ordinal: u64,
    empty: Pool,
    /// How many frames are kept, ready or empty.
    kept: usize,
    /// Frames with consumers.
    lent: usize,
}

impl Frames {
    pub(crate) fn new(config: &Config, empty: Vec<Frame>) -> Self {
        let mut pool = Pool::new(config.spare_frames());
        empty.into_iter().for_each(|frame| pool.put(frame));
        Frames {
            ready: VecDeque::with_capacity(config.ready_frames),
            ready_rows: 0,
            most_ready: config.ready_frames,
            next_ordinal: 0,
            empty: pool,
            kept: config.spare_frames(),
            lent: 0,
        }
    }

    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn ready_rows(&self) -> usize {
        self.ready_rows
    }

    pub(crate) fn lent(&self) -> usize {
        self.lent
    }

    /// Whether another full frame may be made ready.
    pub(crate) fn has_room(&self) -> bool {
        self.ready.len() < self.most_ready
    }

    /// Makes the first `rows` rows of a frame ready.
    pub(crate) fn push(&mut self, frame: Frame, rows: usize) {
        self.ready_rows += rows;
        self.ready.push_back(ReadyFrame { frame, rows, ordinal: self.next_ordinal });
        self.next_ordinal += 1;
    }

    /// Takes the oldest ready frame out.
    pub(crate) fn pop(&mut self) -> Option<ReadyFrame> {
        let ready = self.ready.pop_front()?;
        self.ready_rows -= ready.rows;
        Some(ready)
    }

    /// Takes the oldest ready frame out, for a consumer.
    pub(crate) fn lend(&mut self) -> Option<ReadyFrame> {
        let ready = self.pop()?;
        self.lent += 1;
        Some(ready)
    }

    /// Takes back a frame that was with a consumer. Returns it if there are enough, unless it is `wanted`.
    pub(crate) fn give_back(&mut self, frame: Frame, wanted: bool) -> Option<Frame> {
        self.lent -= 1;
        if wanted || self.ready.len() + self.empty.len() < self.kept {
            self.empty.put(frame);
            return None;
        }
        Some(frame)
    }

    pub(crate) fn take_empty(&mut self) -> Option<Frame> {
        self.empty.take()
    }

    pub(crate) fn put_empty(&mut self, frame: Frame) {
        self.empty.put(frame);
    }

    /// Takes all ready frames out, to be discarded. Returns how many rows they have.
    pub(crate) fn discard_ready(&mut self, discarded: &mut Vec<Frame>) -> usize {
        discarded.extend(self.ready.drain(..).map(|ready| ready.frame));
        mem::take(&mut self.ready_rows)
    }

    /// Takes all empty frames out, and keeps none from now on.
    pub(crate) fn dissolve(&mut self, freed: &mut Vec<Frame>) {
        self.kept = 0;
        freed.extend(self.empty.take_all());
    }

    /// Takes the ready frames out, so that they can be read without the mutex.
    pub(crate) fn borrow_ready(&mut self) -> VecDeque<ReadyFrame> {
        mem::take(&mut self.ready)
    }

    /// Puts back the ready frames that were borrowed.
    pub(crate) fn return_ready(&mut self, ready: VecDeque<ReadyFrame>) {
        self.ready = ready;
    }
}
