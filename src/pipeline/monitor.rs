//! A handle that looks at a store and holds nothing open.

use std::fmt;
use std::sync::Arc;

use crate::pipeline::state::Shared;
use crate::pipeline::stats::Stats;
use crate::rows::layout::Component;

/// Looks at a [`RingStore`](crate::RingStore), for progress bars and logs. It keeps nothing open: unlike a clone of the
/// store, it does not keep the stream from ending, and it is not a consumer. Made by
/// [`RingStore::monitor`](crate::RingStore::monitor).
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

    /// Counts, all taken at the same moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Whether the store takes no more rows: closed, aborted, poisoned, or left by every consumer.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.shared.config.layout.components()
    }

    /// Rows of a minibatch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.shared.config.batch_size
    }

    /// Rows that a minibatch's rows are spread over.
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
