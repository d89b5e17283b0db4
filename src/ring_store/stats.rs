//! The counts of a store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The counts of a [`RingStore`](crate::RingStore), all taken at the same moment.
///
/// For every component, `accepted == resident + served + dropped.total()`. A wait that goes on counts up to now. A
/// wait of 100 ms or more also gives a `tracing` event, at level `DEBUG`, when it is over.
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
    /// The counts of each component, in order.
    pub components: Vec<ComponentStats>,
    /// The number of minibatches that consumers have taken.
    pub minibatches_served: u64,
    /// How long producers waited for consumers. During this time, rows waited at the ring because no consumer took the ready
    /// minibatches.
    pub waited_for_consumers: Duration,
    /// How long consumers waited until a minibatch was ready, summed over the consumers.
    pub waited_for_producers: Duration,
    /// The number of frames that are being filled. 0 once no more minibatches become ready.
    pub frames_open: usize,
    /// The number of full frames that still have a minibatch for a consumer to take.
    pub frames_ready: usize,
    /// The number of frames whose minibatches consumers have all taken, but not all dropped yet.
    pub frames_lent: usize,
}

/// The counts of one component. All are in rows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ComponentStats {
    /// The component's name.
    pub name: Arc<str>,
    /// Rows that the store has taken. An end that discards rows counts the queued rows here, too, and as dropped.
    pub accepted: u64,
    /// Rows that producers have handed over and the store has not taken yet.
    pub queued: u64,
    /// Rows that the store holds: in open frames, in ready frames, or set aside until the rows of the other components come.
    ///
    /// Open frames are half full on average. So this count stays at about half a window plus the ready minibatches.
    pub resident: u64,
    /// Rows that consumers have taken.
    pub served: u64,
    /// Rows that a producer sent again to a resumed store, although they had been dealt before the snapshot. No other count
    /// includes these rows.
    pub resent: u64,
    /// Rows that the store has taken but never serves, by reason.
    pub dropped: Dropped,
    /// Rows with a finite value that was too large for the component's element type and became infinite, such as 70,000 in `f16`.
    ///
    /// This and [`not_finite`](Self::not_finite) count rows as the store copies them into its frames, once each, and never go down. The
    /// store serves these rows like all others. For each component it logs a warning at the first one.
    pub overflowed: u64,
    /// Rows that arrived with a NaN or an infinite value.
    pub not_finite: u64,
}

/// Rows that a store has taken but never serves, by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Dropped {
    /// Rows discarded to make room for newer rows ([`WhenFull::DropOldest`](crate::WhenFull::DropOldest)).
    pub oldest: u64,
    /// Rows discarded by [`RingStore::empty`](crate::RingStore::empty).
    pub emptied: u64,
    /// Rows discarded because the store was aborted, lost its last consumer, or failed, also from the queue.
    pub aborted: u64,
    /// Rows of the last, partial minibatch, discarded because of `drop_last`.
    pub last: u64,
    /// Rows discarded because another component's rows never came.
    pub unmatched: u64,
}

impl Dropped {
    /// The sum of all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Dropped { oldest, emptied, aborted, last, unmatched } = self;
        oldest + emptied + aborted + last + unmatched
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The counts of components differ only while the rows of some components have not come yet.
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
        let (overflowed, not_finite) = (most(|c| c.overflowed), most(|c| c.not_finite));
        if overflowed > 0 {
            write!(f, ", {overflowed} overflowed")?;
        }
        if not_finite > 0 {
            write!(f, ", {not_finite} not finite")?;
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
