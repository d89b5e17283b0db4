//! What a store counts.

use std::sync::Arc;
use std::time::Duration;

/// A consistent picture of a [`RingStore`](crate::RingStore).
///
/// For every component, at every moment, `accepted == resident + served + dropped`. Waits that go on are counted up to now;
/// the writer and the consumers also announce theirs as `tracing` events, at level `DEBUG`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Per component, in order.
    pub components: Vec<ComponentStats>,
    /// Minibatches that consumers have taken.
    pub minibatches_served: u64,
    /// How long rows waited at the ring because the consumers had not taken the ready minibatches.
    pub producer_wait: Duration,
    /// How long consumers waited for a minibatch to become ready, summed over them.
    pub consumer_wait: Duration,
    /// Frames being filled.
    pub frames_open: usize,
    /// Full frames that no consumer has taken yet.
    pub frames_ready: usize,
    /// Frames with consumers: minibatches not dropped yet.
    pub frames_lent: usize,
}

/// The rows of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ComponentStats {
    /// The component's name.
    pub name: Arc<str>,
    /// Rows the store has taken.
    pub accepted: u64,
    /// Rows handed over that the store has not taken yet.
    pub queued: u64,
    /// Rows the store holds: in open frames, in ready ones, or set aside until their other components come.
    ///
    /// Open frames are half full on average, so this stays at about half a window, plus the ready minibatches.
    pub resident: u64,
    /// Rows handed to consumers.
    pub served: u64,
    /// Rows given up: by a full store that discards the oldest, by `empty`, `abort` or `drop_last`, or because another
    /// component never came.
    pub dropped: u64,
}
