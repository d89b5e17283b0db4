//! How a store stands: open or closed, poisoned, and the failures nobody has seen yet.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use crate::error::{ClosedBy, ReadError, WriteError};
use crate::pipeline::sync::lock;

/// Shared by a store's handles, its writer and its consumers.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    /// Held for reading while a batch is handed over, so that nothing slips in behind the closing.
    closed: RwLock<Option<ClosedBy>>,
    poison: OnceLock<Arc<str>>,
    unseen: Mutex<VecDeque<WriteError>>,
    /// Whether `unseen` holds anything: saves the lock on every call.
    any_unseen: AtomicBool,
}

impl Fate {
    /// Permission to hand something to the writer; it cannot close while this is held.
    pub(crate) fn enter(&self) -> Result<RwLockReadGuard<'_, Option<ClosedBy>>, WriteError> {
        let gate = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        self.check_poison()?;
        match *gate {
            None => Ok(gate),
            Some(by) => Err(WriteError::Closed(by)),
        }
    }

    /// Closes for `by`, or does nothing if closed already. An abort overrides a close, which still serves rows.
    ///
    /// Returns whether this call changed anything.
    pub(crate) fn close(&self, by: ClosedBy) -> bool {
        let mut closed = self.closed.write().unwrap_or_else(PoisonError::into_inner);
        let changes = match *closed {
            None => true,
            Some(ClosedBy::Close) => by != ClosedBy::Close,
            Some(_) => false,
        };
        if changes {
            *closed = Some(by);
        }
        changes
    }

    pub(crate) fn closed_by(&self) -> Option<ClosedBy> {
        *self.closed.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the writer panicked. Nothing more is handed to it once this returns.
    pub(crate) fn poison(&self, cause: &str) {
        let _ = self.poison.set(cause.into());
        // Whoever was let in before has left after this.
        drop(self.closed.write());
    }

    pub(crate) fn poisoned(&self) -> Option<Arc<str>> {
        self.poison.get().cloned()
    }

    fn check_poison(&self) -> Result<(), WriteError> {
        self.poisoned().map_or(Ok(()), |cause| Err(WriteError::Poisoned { cause }))
    }

    /// Why a write that the writer dropped without an answer failed.
    pub(crate) fn cause(&self) -> WriteError {
        let closed = || WriteError::Closed(self.closed_by().unwrap_or(ClosedBy::Close));
        self.check_poison().err().unwrap_or_else(closed)
    }

    /// Keeps a failure that has no handle to report it, for the next call.
    pub(crate) fn report(&self, error: WriteError) {
        tracing::warn!(%error, "a write failed and nobody awaits it");
        lock(&self.unseen).push_back(error);
        self.any_unseen.store(true, Ordering::Release);
    }

    /// The oldest failure nobody has seen; it counts as seen from now on.
    pub(crate) fn take_unseen(&self) -> Option<WriteError> {
        if !self.any_unseen.load(Ordering::Acquire) {
            return None;
        }
        let mut unseen = lock(&self.unseen);
        let error = unseen.pop_front();
        self.any_unseen.store(!unseen.is_empty(), Ordering::Release);
        error
    }

    /// What a consumer must be told before it gets another minibatch.
    pub(crate) fn read_error(&self) -> Option<ReadError> {
        if let Some(cause) = self.poisoned() {
            return Some(ReadError::Poisoned { cause });
        }
        self.take_unseen().map(ReadError::FailedWrite)
    }
}
