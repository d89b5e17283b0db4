//! A handle that observes a store and does not keep it open.

use std::fmt;
use std::sync::Arc;

use crate::ring_store::core::Shared;
use crate::ring_store::stats::Stats;
use crate::rows::layout::Component;

/// Observes a [`RingStore`](crate::RingStore), for progress bars and logs. A monitor does not keep the store open, as a clone of the
/// store does, so the stream can end. A monitor is not a consumer. Made by [`RingStore::monitor`](crate::RingStore::monitor).
///
/// ```
/// use activation_store::RingStore;
///
/// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(64).build()?;
/// let (monitor, mut minibatches) = (store.monitor(), store.minibatches());
/// drop(store); // closes it
/// assert!(minibatches.blocking().next().is_none());
/// assert!(monitor.is_closed());
/// println!("{}", monitor.stats());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Monitor {
    shared: Arc<Shared>,
}

impl Monitor {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Monitor { shared }
    }

    /// The store's counts, all taken at the same moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Whether the store takes no more rows: it is closed, aborted or poisoned, or its last consumer is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.shared.config.layout.components()
    }

    /// The number of rows of a minibatch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.shared.config.batch_size
    }

    /// The number of rows that a minibatch's rows are spread over.
    #[must_use]
    pub fn window(&self) -> usize {
        self.shared.config.window()
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("stats", &self.stats()).finish()
    }
}
