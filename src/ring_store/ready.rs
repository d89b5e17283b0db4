//! Full frames that wait for consumers, and empty frames that take their place in the ring.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use crate::memory::frame::Frame;
use crate::memory::part::Part;
use crate::memory::pool::{FrameHome, Pool};
use crate::ring_store::builder::Config;

/// A full frame that waits for consumers, or the rest of a frame after consumers took minibatches from it.
#[derive(Debug)]
pub(crate) struct ReadyFrame {
    memory: Held,
    /// The frame's first unserved row. Rows before it were served before the store was resumed.
    first: usize,
    /// The unserved rows.
    rows: usize,
    /// The number of its next minibatch.
    ordinal: u64,
}

#[derive(Debug)]
enum Held {
    Frame(Frame),
    /// The rest of a frame: consumers have taken some of its minibatches.
    Rest(Part),
}

/// A minibatch on its way to a consumer.
pub(crate) struct Lent {
    pub(crate) part: Part,
    pub(crate) ordinal: u64,
}

impl ReadyFrame {
    /// Makes a ready frame of all rows of a full frame. The frame's first minibatch has the number `ordinal`.
    pub(crate) fn full(frame: Frame, ordinal: u64) -> Self {
        let rows = frame.layout().rows();
        ReadyFrame { memory: Held::Frame(frame), first: 0, rows, ordinal }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Copies the unserved rows to the front of `into`.
    pub(crate) fn save(&self, into: &mut Frame) {
        for component in 0..into.layout().n_components() {
            for n in 0..self.rows {
                into.row_mut(component, n).copy_from_slice(self.row(component, n));
            }
        }
    }

    /// The number of its next minibatch.
    pub(crate) fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// The `n`-th unserved row of a component.
    pub(crate) fn row(&self, component: usize, n: usize) -> &[u8] {
        match &self.memory {
            Held::Frame(frame) => frame.row(component, self.first + n),
            Held::Rest(part) => part.row(component, n),
        }
    }
}

/// The frames that are not open: ready, empty, or lent to consumers.
#[derive(Debug)]
pub(crate) struct Frames {
    /// The ready frames, oldest first.
    ready: VecDeque<ReadyFrame>,
    /// The rows in the ready frames, also while the writer has borrowed the frames.
    ready_rows: usize,
    most_ready: usize,
    /// The rows of a minibatch.
    batch_size: usize,
    /// The number of the first minibatch of the next frame that becomes ready.
    next_ordinal: u64,
    /// The number of the next minibatch to be served. Minibatches with lower numbers were served or discarded.
    next_served: u64,
    /// The number of the first minibatch since the ring was last emptied.
    first_ordinal: u64,
    empty: Pool,
    /// Whether lending is stopped until a snapshot has read the ready frames.
    pinned: bool,
    /// The number of frames that the store keeps, ready or empty. More frames are freed.
    kept: usize,
    /// The frames whose minibatches consumers have all taken, but not all dropped.
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
            batch_size: config.batch_size,
            next_ordinal: 0,
            next_served: 0,
            first_ordinal: 0,
            empty: pool,
            pinned: false,
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

    /// The number of minibatches that consumers can take now.
    pub(crate) fn ready_minibatches(&self) -> usize {
        if self.pinned { 0 } else { self.ready.iter().map(|ready| ready.rows.div_ceil(self.batch_size)).sum() }
    }

    pub(crate) fn lent(&self) -> usize {
        self.lent
    }

    /// Whether another full frame may be made ready.
    pub(crate) fn has_room(&self) -> bool {
        self.ready.len() < self.most_ready
    }

    /// Makes the first `rows` rows of a frame ready, except minibatches that were served before the store was resumed. Returns the
    /// number of rows that became ready.
    pub(crate) fn push(&mut self, frame: Frame, rows: usize) -> usize {
        let ordinal = self.next_ordinal.max(self.next_served);
        let first = (ordinal - self.next_ordinal).saturating_mul(self.batch_size as u64);
        self.next_ordinal += rows.div_ceil(self.batch_size) as u64;
        let left = (rows as u64).saturating_sub(first) as usize;
        if left == 0 {
            self.empty.put(frame);
            return 0;
        }
        self.ready_rows += left;
        let first = rows - left;
        self.ready.push_back(ReadyFrame { memory: Held::Frame(frame), first, rows: left, ordinal });
        left
    }

    /// The numbers of the next minibatch to be served, and of the first minibatch since the ring was last emptied.
    pub(crate) fn ordinals(&self) -> (u64, u64) {
        (self.next_served, self.first_ordinal)
    }

    /// The number of the first minibatch of the next frame that becomes ready.
    pub(crate) fn next_ordinal(&self) -> u64 {
        self.next_ordinal
    }

    /// Notes that the ring was emptied. The next minibatch that becomes ready is the first of the emptied ring.
    pub(crate) fn emptied(&mut self) {
        self.next_ordinal = self.next_ordinal.max(self.next_served);
        (self.first_ordinal, self.next_served) = (self.next_ordinal, self.next_ordinal);
    }

    /// Goes on where the saved store stood. The arguments are minibatch numbers: of the first one since the ring was last emptied, of
    /// the next one to become ready, and of the next one to be served.
    pub(crate) fn go_on(&mut self, first: u64, becomes_ready: u64, served: u64) {
        (self.first_ordinal, self.next_ordinal, self.next_served) = (first, becomes_ready, served);
    }

    /// Takes out the oldest minibatch for a consumer. The frame goes back to `home` when its last part is dropped.
    pub(crate) fn lend(&mut self, home: &Arc<impl FrameHome + 'static>) -> Option<Lent> {
        if self.pinned {
            return None;
        }
        let mut ready = self.ready.pop_front()?;
        let (ordinal, rows) = (ready.ordinal, self.batch_size.min(ready.rows));
        let mut part = match ready.memory {
            Held::Frame(frame) => {
                let mut part = Part::whole(frame, ready.first + ready.rows, home.clone());
                if ready.first > 0 {
                    // The frame has another part, so this drop does not send it home.
                    drop(part.split_front(ready.first));
                }
                part
            }
            Held::Rest(part) => part,
        };
        self.ready_rows -= rows;
        self.next_served = ordinal + 1;
        if rows == ready.rows {
            self.lent += 1;
            return Some(Lent { part, ordinal });
        }
        let front = part.split_front(rows);
        ready = ReadyFrame { memory: Held::Rest(part), first: 0, rows: ready.rows - rows, ordinal: ordinal + 1 };
        self.ready.push_front(ready);
        Some(Lent { part: front, ordinal })
    }

    /// Stops lending until [`unpin`](Self::unpin).
    pub(crate) fn pin(&mut self) {
        self.pinned = true;
    }

    /// Whether lending is stopped.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Allows lending again.
    pub(crate) fn unpin(&mut self) {
        self.pinned = false;
    }

    /// Discards the oldest ready frame, or what is left of it. Returns the number of discarded rows.
    pub(crate) fn discard_oldest(&mut self, discarded: &mut Vec<Part>) -> Option<usize> {
        let ReadyFrame { memory, rows, ordinal, .. } = self.ready.pop_front()?;
        self.ready_rows -= rows;
        self.next_served = ordinal + rows.div_ceil(self.batch_size) as u64;
        match memory {
            Held::Frame(frame) => self.empty.put(frame),
            Held::Rest(part) => {
                // The frame goes home as if its last minibatch had been lent.
                self.lent += 1;
                discarded.push(part);
            }
        }
        Some(rows)
    }

    /// Takes back a frame from the consumers. Returns the frame if the store has enough frames and the writer does not want it.
    pub(crate) fn give_back(&mut self, frame: Frame, wanted: bool) -> Option<Frame> {
        self.lent -= 1;
        if wanted || self.ready.len() + self.empty.len() < self.kept {
            self.empty.put(frame);
            return None;
        }
        Some(frame)
    }

    pub(crate) fn has_empty(&self) -> bool {
        self.empty.len() > 0
    }

    pub(crate) fn take_empty(&mut self) -> Option<Frame> {
        self.empty.take()
    }

    /// Discards all ready frames. Returns the number of discarded rows.
    pub(crate) fn discard_ready(&mut self, discarded: &mut Vec<Part>) -> usize {
        // This counts the rows that the writer has borrowed, too.
        let rows = self.ready_rows;
        while self.discard_oldest(discarded).is_some() {}
        self.ready_rows = 0;
        rows
    }

    /// Takes out all empty frames, and keeps no frame from now on.
    pub(crate) fn dissolve(&mut self, freed: &mut Vec<Frame>) {
        self.kept = 0;
        freed.extend(self.empty.take_all());
    }

    /// Takes out the ready frames, so that the caller can read them without the mutex.
    pub(crate) fn borrow_ready(&mut self) -> VecDeque<ReadyFrame> {
        mem::take(&mut self.ready)
    }

    /// Puts the borrowed ready frames back.
    pub(crate) fn return_ready(&mut self, ready: VecDeque<ReadyFrame>) {
        self.ready_rows = ready.iter().map(ReadyFrame::rows).sum();
        self.ready = ready;
    }
}
