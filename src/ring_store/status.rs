//! The status of a store: open, closed, aborted or poisoned.

use std::error::Error;
use std::sync::Arc;

use crate::rows::closed::{Closed, ClosedBy, StoreId};
use crate::rows::error::WriteError;

/// An error that a store was closed with.
pub(crate) type Failure = Arc<dyn Error + Send + Sync>;

#[derive(Debug)]
pub(crate) struct Status {
    /// Named in the errors, so that a group knows the end of its own store.
    store: StoreId,
    closed: Option<ClosedBy>,
    /// The first error that the store was closed with.
    failure: Option<Failure>,
    /// The message of the panic that ended the writer.
    poison: Option<Arc<str>>,
}

impl Status {
    pub(crate) fn new() -> Self {
        Status { store: StoreId::new(), closed: None, failure: None, poison: None }
    }

    pub(crate) fn store(&self) -> StoreId {
        self.store
    }

    /// Checks that the store takes rows. The error says why it does not.
    pub(crate) fn check(&self) -> Result<(), WriteError> {
        match (&self.poison, self.closed) {
            (Some(cause), _) => Err(WriteError::Poisoned { cause: cause.clone() }),
            (None, Some(by)) => Err(WriteError::Closed(Closed::store(self.store, by))),
            (None, None) => Ok(()),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.closed.is_none() && self.poison.is_none()
    }

    /// Whether the store discards the rows that it holds. After a plain `close`, it serves them.
    pub(crate) fn discards(&self) -> bool {
        self.poison.is_some() || !matches!(self.closed, None | Some(ClosedBy::Close))
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.closed == Some(ClosedBy::Abort)
    }

    pub(crate) fn poison(&self) -> Option<&Arc<str>> {
        self.poison.as_ref()
    }

    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref().filter(|_| !self.discards())
    }

    /// Closes the store, and returns whether the status changed.
    ///
    /// The first cause stays. But a cause that discards rows replaces `Close`, after which the store would still serve rows.
    pub(crate) fn close(&mut self, by: ClosedBy) -> bool {
        let changes = match self.closed {
            None => true,
            Some(ClosedBy::Close) => by != ClosedBy::Close,
            Some(_) => false,
        };
        if changes {
            self.closed = Some(by);
        }
        changes
    }

    /// Keeps the error if it is the first.
    pub(crate) fn fail(&mut self, failure: Failure) -> Result<(), Failure> {
        if self.failure.is_some() {
            return Err(failure);
        }
        self.failure = Some(failure);
        Ok(())
    }

    pub(crate) fn set_poison(&mut self, cause: &str) {
        self.poison.get_or_insert_with(|| cause.into());
    }
}
