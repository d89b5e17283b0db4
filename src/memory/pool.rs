//! Frames that wait to be used again.

use crate::memory::frame::Frame;

/// Where the frame of a minibatch goes when the minibatch is dropped.
pub(crate) trait FrameHome: Send + Sync {
    fn give_back(&self, frame: Frame);
}

/// Empty frames, all of one layout. Plain data: its owner locks it.
#[derive(Debug)]
pub(crate) struct Pool {
    empty: Vec<Frame>,
}

impl Pool {
    /// An empty pool; `expected` frames fit without another allocation.
    pub(crate) fn new(expected: usize) -> Self {
        Pool { empty: Vec::with_capacity(expected) }
    }

    /// How many frames are empty.
    pub(crate) fn len(&self) -> usize {
        self.empty.len()
    }

    pub(crate) fn put(&mut self, frame: Frame) {
        self.empty.push(frame);
    }

    pub(crate) fn take(&mut self) -> Option<Frame> {
        self.empty.pop()
    }

    /// Takes every frame.
    pub(crate) fn take_all(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.empty)
    }
}
