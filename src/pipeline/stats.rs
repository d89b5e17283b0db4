//! What a store counts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A consistent picture of a [`RingStore`](crate::RingStore): all counts are taken at the same moment.
///
/// For every component, `accepted == resident + served + dropped.total()`. Waits that go on are counted up to now. The
/// writer and the consumers also announce their waits as `tracing` events, at level `DEBUG`.
///
/// `Display` gives one line:
///
/// ```
/// use activation_store::RingStore;
///
/// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(64).build()?;
/// let _ = store.extend(ndarray::Array2::<f32>::zeros((16, 4)), "mlp")?.wait()?;
/// let line = store.stats().to_string();
/// assert!(line.starts_with("16 rows taken, 0 served in 0 minibatches, 16 in the ring, 0 queued"), "{line}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Per component, in order.
    pub components: Vec<ComponentStats>,
    /// Minibatches that consumers have taken.
    pub minibatches_served: u64,
    /// How long producers waited for consumers: rows waited at the ring, because the ready minibatches were not taken.
    pub waited_for_consumers: Duration,
    /// How long consumers waited for producers, until a minibatch was ready. Summed over the consumers.
    pub waited_for_producers: Duration,
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
    /// Rows that a resumed store was sent again although they had been dealt before the snapshot. They are in no other count.
    pub resent: u64,
    /// Rows taken but never served, by reason.
    pub dropped: Dropped,
}

/// Rows that were taken but are never served, by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Dropped {
    /// Discarded to make room for newer rows ([`WhenFull::DropOldest`](crate::WhenFull::DropOldest)).
    pub oldest: u64,
    /// Discarded by [`RingStore::empty`](crate::RingStore::empty).
    pub emptied: u64,
    /// Discarded because the store was aborted, lost its last consumer, or failed.
    pub aborted: u64,
    /// Rows of the last, partial minibatch, which `drop_last` discards.
    pub last: u64,
    /// Rows whose counterparts in another component never came.
    pub unmatched: u64,
}

impl Dropped {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Dropped { oldest, emptied, aborted, last, unmatched } = self;
        oldest + emptied + aborted + last + unmatched
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The components differ only while rows of some of them are on their way.
        let most = |of: fn(&ComponentStats) -> u64| self.components.iter().map(of).max().unwrap_or(0);
        write!(
            f,
            "{} rows taken, {} served in {} minibatches, {} in the ring, {} queued",
            most(|c| c.accepted),
            most(|c| c.served),
            self.minibatches_served,
            most(|c| c.resident),
            most(|c| c.queued),
        )?;
        let dropped = most(|c| c.dropped.total());
        if dropped > 0 {
            write!(f, ", {dropped} dropped")?;
        }
        let seconds = |wait: Duration| wait.as_secs_f64();
        write!(
            f,
            "; producers waited {:.1} s for consumers, consumers {:.1} s for producers",
            seconds(self.waited_for_consumers),
            seconds(self.waited_for_producers),
        )
    }
}
