//! What a change of the state sets free, to be run once the mutex is free.

use std::task::Waker;

use crossbeam_channel::Sender;
use ndarray::ArrayD;
use tokio::sync::oneshot;

use crate::error::{IndexError, SnapshotError, WriteError};
use crate::memory::frame::Frame;
use crate::memory::part::Part;
use crate::pipeline::saving::SnapshotRequest;
use crate::pipeline::worker::{Panic, Panics};

/// Resolves a flush.
pub(crate) type FlushReply = oneshot::Sender<Result<(), WriteError>>;
/// Answers a caller that waits for `empty`.
pub(crate) type EmptyReply = Sender<()>;
/// Answers a caller that waits for `get`.
pub(crate) type GetReply = Sender<Result<ArrayD<f32>, IndexError>>;

/// Wakers and answers that run foreign code, and memory to be freed.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Afterwards {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) flushes: Vec<(FlushReply, Result<(), WriteError>)>,
    pub(crate) empties: Vec<EmptyReply>,
    pub(crate) gets: Vec<(GetReply, IndexError)>,
    /// Snapshots that cannot be taken.
    pub(crate) snapshots: Vec<(SnapshotRequest, SnapshotError)>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) parts: Vec<Part>,
    /// Wakers that are not needed any more: dropping one runs foreign code, too.
    pub(crate) dropped: Vec<Waker>,
}

impl Afterwards {
    /// Runs it, without the mutex. A waker that panics keeps no other from being woken; the first panic is returned.
    pub(crate) fn run(&mut self) -> Result<(), Panic> {
        self.frames.clear();
        self.parts.clear();
        let mut panics = Panics::default();
        for waker in self.dropped.drain(..) {
            panics.catch(|| drop(waker));
        }
        // A caller that no longer waits for its answer does not matter.
        for (reply, outcome) in self.flushes.drain(..) {
            panics.catch(|| drop(reply.send(outcome)));
        }
        for (request, error) in self.snapshots.drain(..) {
            panics.catch(|| request.refuse(error));
        }
        for (reply, error) in self.gets.drain(..) {
            let _ = reply.send(Err(error));
        }
        for reply in self.empties.drain(..) {
            let _ = reply.send(());
        }
        for waker in self.wakers.drain(..) {
            panics.catch(|| waker.wake());
        }
        panics.first()
    }
}
