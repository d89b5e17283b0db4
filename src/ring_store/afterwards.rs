//! The work that a change of the state causes, to be done after the mutex is released.

use std::task::Waker;

use crossbeam_channel::Sender;
use ndarray::ArrayD;
use tokio::sync::oneshot;

use crate::memory::frame::Frame;
use crate::memory::part::Part;
use crate::ring_store::snapshot::error::SnapshotError;
use crate::ring_store::snapshot::saving::SnapshotRequest;
use crate::rows::error::WriteError;
use crate::rows::index::IndexError;
use crate::waiting::panics::{Panic, Panics};

/// Resolves a [`Flush`](crate::Flush).
pub(crate) type FlushReply = oneshot::Sender<Result<(), WriteError>>;
/// Answers a caller that waits for `empty`.
pub(crate) type EmptyReply = Sender<()>;
/// Answers a caller that waits for `get`.
pub(crate) type GetReply = Sender<Result<ArrayD<f32>, IndexError>>;

/// Wakers and answers, which run foreign code, and memory to be freed.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Afterwards {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) flushes: Vec<(FlushReply, Result<(), WriteError>)>,
    pub(crate) empties: Vec<EmptyReply>,
    pub(crate) gets: Vec<(GetReply, IndexError)>,
    /// The snapshots that cannot be taken, each with the reason.
    pub(crate) snapshots: Vec<(SnapshotRequest, SnapshotError)>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) parts: Vec<Part>,
    /// Wakers that are not needed any more. Dropping a waker runs foreign code, too.
    pub(crate) dropped: Vec<Waker>,
}

impl Afterwards {
    /// Does the work. Call this without the mutex. If a waker panics, the other wakers still run. Returns the first panic as the
    /// error.
    pub(crate) fn run(&mut self) -> Result<(), Panic> {
        self.frames.clear();
        self.parts.clear();
        let mut panics = Panics::default();
        for waker in self.dropped.drain(..) {
            panics.catch(|| drop(waker));
        }
        // A caller may have stopped waiting for its answer.
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
