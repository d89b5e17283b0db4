//! Why a consumer gets no minibatch, and how messages name a lane.

use std::fmt;
use std::sync::Arc;

/// Returned when a consumer gets an error and no minibatch.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No minibatch was ready within the time limit.
    #[error("no minibatch was ready within {0:?}")]
    Timeout(std::time::Duration),
    /// No minibatch was ready within the time limit, because a resumed store waits for a lane that no producer has opened.
    #[error(
        "no minibatch was ready within {after:?}: the resumed store waits for {lane}, which was open when it was saved; open it with \
         producer() or producer_named(), and send its rows or close it"
    )]
    LaneMissing {
        /// The time limit.
        after: std::time::Duration,
        /// The lane.
        lane: LaneId,
    },
    /// The store was closed with an error: by [`RingStore::close_with`](crate::RingStore::close_with), or because a producer
    /// failed. Each consumer gets the error once, after the last minibatch.
    #[error(transparent)]
    Failed(Arc<dyn std::error::Error + Send + Sync>),
    /// The store was aborted before this consumer was made.
    #[error("the store was aborted before this consumer was made; build another store")]
    Aborted,
    /// The store's writer panicked. You cannot use the store any more.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

impl ReadError {
    /// Returns whether no minibatch was ready within the time limit.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, ReadError::Timeout(_) | ReadError::LaneMissing { .. })
    }

    /// Returns whether the writer panicked.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        matches!(self, ReadError::Poisoned { .. })
    }
}

/// Names a lane in messages: by its name, or by its number if it has no name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// 0 for the store's own lane. Other lanes are numbered from 1 in the order in which they were opened.
    pub number: u64,
    /// The name of the lane, if it has one.
    pub name: Option<Arc<str>>,
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.number) {
            (Some(name), _) => write!(f, "lane {name:?}"),
            (None, 0) => f.write_str("the store's own lane"),
            (None, number) => write!(f, "lane {number} in the order of opening"),
        }
    }
}
