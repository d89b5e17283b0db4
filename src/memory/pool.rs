//! Empty frames that wait for their next use.

use crate::memory::frame::Frame;

/// Takes back the frame of a minibatch when the minibatch is dropped.
pub(crate) trait FrameHome: Send + Sync {
    fn give_back(&self, frame: Frame);
}

/// Empty frames, all of one layout. Plain data: the owner of the pool locks it.
#[derive(Debug)]
pub(crate) struct Pool {
    empty: Vec<Frame>,
}

impl Pool {
    /// Makes a pool without frames. `expected` frames fit without another allocation.
    pub(crate) fn new(expected: usize) -> Self {
        Pool { empty: Vec::with_capacity(expected) }
    }

    /// The number of frames in the pool.
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
