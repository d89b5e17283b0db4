//! Frames that wait to be used again.

use std::sync::Arc;
use std::sync::Mutex;

use crate::error::BuildError;
use crate::memory::frame::Frame;
use crate::pipeline::sync::lock;
use crate::rows::layout::Layout;

/// Empty frames of one layout. Minibatches return their frame here when dropped.
#[derive(Debug)]
pub(crate) struct Pool {
    layout: Arc<Layout>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    empty: Vec<Frame>,
    /// How many empty frames are kept; more are freed.
    keep: usize,
    lent: usize,
}

impl Pool {
    /// A pool that keeps at most `keep` frames. It starts without any.
    pub(crate) fn new(layout: Arc<Layout>, keep: usize) -> Self {
        Pool { layout, state: Mutex::new(State { empty: Vec::with_capacity(keep), keep, lent: 0 }) }
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Adds an empty frame, or frees it when there are enough.
    pub(crate) fn put(&self, frame: Frame) {
        let mut state = lock(&self.state);
        if state.empty.len() < state.keep {
            state.empty.push(frame);
            return;
        }
        drop(state);
        drop(frame);
    }

    /// An empty frame; a new one where the consumers have all the others.
    pub(crate) fn take(&self) -> Result<Frame, BuildError> {
        if let Some(frame) = lock(&self.state).empty.pop() {
            return Ok(frame);
        }
        Frame::allocate_one(&self.layout, "a minibatch")
    }

    /// Counts a frame as with a consumer.
    pub(crate) fn lend(&self) {
        lock(&self.state).lent += 1;
    }

    /// Takes back a frame that was with a consumer.
    pub(crate) fn give_back(&self, frame: Frame) {
        lock(&self.state).lent -= 1;
        self.put(frame);
    }

    /// Frames with consumers.
    pub(crate) fn lent(&self) -> usize {
        lock(&self.state).lent
    }

    /// Frees every empty frame, and from now on those that come back.
    pub(crate) fn dissolve(&self) {
        let empty = {
            let mut state = lock(&self.state);
            state.keep = 0;
            std::mem::take(&mut state.empty)
        };
        drop(empty);
    }
}
