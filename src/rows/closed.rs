//! A store takes no more rows: why, and which store.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Says why a store takes no more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClosedBy {
    /// `close()` was called, or every handle that could write was dropped.
    Close,
    /// `abort()` was called.
    Abort,
    /// No [`Minibatches`](crate::Minibatches) is left, so no row can be served.
    NoConsumers,
    /// The lane of this producer was closed. The store may still be open.
    Lane,
    /// The recorder has been closed or finished.
    Recorder,
}

impl fmt::Display for ClosedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClosedBy::Close => "the store is closed",
            ClosedBy::Abort => "the store was aborted",
            ClosedBy::NoConsumers => "the store is closed: no consumer (Minibatches) is left",
            ClosedBy::Lane => "this producer's lane is closed; open another with producer()",
            ClosedBy::Recorder => "the recorder is closed; resume the lane with another recorder to go on",
        })
    }
}

/// Says that a store takes no more rows, and why. It also knows which store, so that a group of producers tells the end of its own
/// store from the end of another one.
///
/// This is the source of [`WriteError::Closed`](crate::WriteError::Closed). A chain of errors shows it even if a wrapper hides the [`WriteError`](crate::WriteError). Two values are
/// equal if their reasons are. The message of the [`WriteError`](crate::WriteError) has the reason, so the message of this source does not repeat it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it takes no more rows")]
#[non_exhaustive]
pub struct Closed {
    /// The reason.
    pub by: ClosedBy,
    /// The ring store that has ended. `None` if only a lane has, or if it is another kind of store.
    store: Option<StoreId>,
}

impl Closed {
    /// The end of a lane, or of a store of another kind.
    pub(crate) fn by(by: ClosedBy) -> Self {
        Closed { by, store: None }
    }

    pub(crate) fn store(store: StoreId, by: ClosedBy) -> Self {
        Closed { by, store: Some(store) }
    }

    pub(crate) fn is_end_of(&self, store: StoreId) -> bool {
        self.store == Some(store)
    }
}

impl PartialEq for Closed {
    fn eq(&self, other: &Self) -> bool {
        self.by == other.by
    }
}

impl Eq for Closed {}

/// Tells one store from every other store of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreId(u64);

impl StoreId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        StoreId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
