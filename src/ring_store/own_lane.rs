//! The store as a lane: its methods for writing.

use crate::ring_store::pass::Pass;
use crate::ring_store::reserve::Reserve;
use crate::ring_store::ring_store::RingStore;
use crate::rows::batch::{Batch, Refused, RefusedPass};
#[cfg(doc)]
use crate::rows::error::WriteError;
use crate::rows::layout::ComponentKey;
use crate::rows::names::UnknownComponent;
use crate::waiting::handle::WriteHandle;

impl RingStore {
    /// Hands over a batch, `[rows, features]`, of a component. Returns within microseconds for a batch of any size.
    ///
    /// The handle resolves when the rows are in the ring, or when they are set aside until the rows of the other components come.
    /// While the queue is full, the batch waits in line. Its memory is not part of the store's bounds. So await the handles if you send
    /// more batches, or use [`extend_blocking`](Self::extend_blocking), [`try_extend`](Self::try_extend) or [`reserve`](Self::reserve).
    ///
    /// It is safer to write a forward pass with several components as a whole. Use [`extend_pass`](Self::extend_pass), or
    /// [`begin_pass`](Self::begin_pass) for hooks that fire one by one. If you use `extend`, mind two things:
    ///
    /// - If a batch is refused in the middle of a pass, the store has rows of some components and lacks the same rows of the others.
    ///   Write the missing rows later, or end the lane. When the lane ends, the store drops its rows without counterparts, and a new
    ///   lane starts even. If you go on with the next pass instead, the store pairs rows of two passes.
    /// - Two threads must not write single components to the same lane. Clones of a store share one lane. If two threads each write
    ///   `"a"`, then `"b"`, the order may be a1, a2, b2, b1. Then the store pairs rows of different tokens and reports no error. Give
    ///   each thread a [`producer`](Self::producer), or write whole passes.
    ///
    /// # Errors
    /// [`Refused`] gives the batch back in these cases:
    ///
    /// - The component, the number of features or the element type is wrong.
    /// - The component would be too far ahead of another component (`max_skew`).
    /// - The store or the lane is closed, or the store is poisoned.
    /// - The queue is full, and the store has [`WhenFull::Reject`](crate::WhenFull::Reject).
    pub fn extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.lane().extend(batch, component)
    }

    /// Hands over a batch, `[rows, features]`, if the queue has room for it. Never waits.
    ///
    /// There is always room for rows if the store has taken the same rows of another component. So only the first component of a
    /// pass can be refused because the queue is full. If you skip a refused batch, skip the same rows of every other component.
    /// Otherwise the components no longer line up.
    ///
    /// # Errors
    /// Same as [`extend`](Self::extend), and [`WriteError::Full`] if the queue has no room.
    pub fn try_extend(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.lane().try_extend(batch, component)
    }

    /// Waits until the queue has room for a batch, `[rows, features]`, then hands the batch over.
    ///
    /// The call slows your thread down to the pace of the consumers. There is room when nothing else is queued, or when the
    /// batch fits within `queue_rows`. Callers get in one at a time, in the order in which they came. Rows never wait if the store has
    /// taken the same rows of another component. In an async task, await the handle of [`extend`](Self::extend) or
    /// [`reserve`](Self::reserve) instead.
    ///
    /// # Errors
    /// Same as [`extend`](Self::extend). If the store is closed while the call waits, you get the batch back with
    /// [`WriteError::Closed`].
    ///
    /// # Blocking
    /// Blocks until consumers have taken minibatches, or the store takes no more rows. Does not block if the store has
    /// [`WhenFull::Reject`](crate::WhenFull::Reject).
    pub fn extend_blocking(&self, batch: impl Into<Batch>, component: impl ComponentKey) -> Result<(), Refused> {
        self.lane().extend_blocking(batch, component)
    }

    /// Hands over one row of a component and returns at once. See [`extend`](Self::extend).
    ///
    /// # Errors
    /// Same as [`extend`](Self::extend), and [`WriteError::NotOneRow`] if `row` is not one row.
    pub fn append(&self, row: impl Into<Batch>, component: impl ComponentKey) -> Result<WriteHandle, Refused> {
        self.lane().append(row, component)
    }

    /// Hands over the rows of all components that one forward pass produced. Returns at once.
    ///
    /// `pass` has every component of the store exactly once, in any order. All batches, `[rows, features]`, have the same number of
    /// rows. The store checks, queues and refuses the pass as a whole: it takes all rows or none. The handle resolves when all rows
    /// are in the ring.
    ///
    /// ```
    /// use activation_store::RingStore;
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("attn", 4).component("mlp", 6).batch_size(8).window(32).build()?;
    /// let handle = store.extend_pass([("mlp", Array2::<f32>::zeros((5, 6))), ("attn", Array2::zeros((5, 4)))])?;
    /// assert_eq!(handle.wait()?.rows, 5);
    ///
    /// let refused = store.extend_pass([("mlp", Array2::<f32>::zeros((5, 6)))]).unwrap_err();
    /// assert!(refused.to_string().contains("no rows of component 0 (\"attn\")"));
    /// assert_eq!(refused.batches.len(), 1); // all come back
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back in these cases:
    ///
    /// - [`extend`](Self::extend) would refuse one of the batches.
    /// - A component is missing ([`WriteError::PassLacks`]), is there twice ([`WriteError::PassDoubles`]), or has another number of
    ///   rows ([`WriteError::PassRows`]).
    /// - The lane has more rows of one component than of another ([`WriteError::Uneven`]). The rows of the pass would not be aligned.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.lane().extend_pass(pass)
    }

    /// Hands over a pass if the queue has room for all of it. Never waits. See [`extend_pass`](Self::extend_pass).
    ///
    /// # Errors
    /// Same as [`extend_pass`](Self::extend_pass), and [`WriteError::Full`] if the queue has no room.
    pub fn try_extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        self.lane().try_extend_pass(pass)
    }

    /// Waits until the queue has room for all of a pass, then hands the pass over. See [`extend_pass`](Self::extend_pass) and
    /// [`extend_blocking`](Self::extend_blocking).
    ///
    /// # Errors
    /// Same as [`extend_pass`](Self::extend_pass). If the store is closed while the call waits, you get the pass back with
    /// [`WriteError::Closed`].
    ///
    /// # Blocking
    /// Blocks until consumers have taken minibatches, or the store takes no more rows. Does not block if the store has
    /// [`WhenFull::Reject`](crate::WhenFull::Reject).
    pub fn extend_pass_blocking<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<(), RefusedPass> {
        self.lane().extend_pass_blocking(pass)
    }

    /// Begins a pass to which you add one component after the other, as hooks fire. The store gets the whole pass when you
    /// [commit](Pass::commit) it.
    pub fn begin_pass(&self) -> Pass {
        self.lane().begin_pass()
    }

    /// Returns a future that resolves when the queue has room for `rows` rows of a component. It yields a [`Permit`](crate::Permit),
    /// with which you hand the rows over.
    ///
    /// Use it in place of [`extend_blocking`](Self::extend_blocking) in async tasks, to wait with a time limit, or for rows that come in
    /// several pieces.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use activation_store::RingStore;
    /// use ndarray::Array2;
    ///
    /// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
    /// let mut permit = store.reserve("mlp", 12)?.await?; // waits while the queue is full
    /// for _ in 0..3 {
    ///     let _ = permit.extend(Array2::<f32>::zeros((4, 4)))?;
    /// }
    /// # Ok(())
    /// # }
    /// # futures::executor::block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`UnknownComponent`] if the store has no such component. The future yields a [`WriteError`] if the store or the lane takes no more
    /// rows, or if the component would be too far ahead of another.
    ///
    /// # Cancel safety
    /// If you drop the future, you lose only your place in line.
    pub fn reserve(&self, component: impl ComponentKey, rows: usize) -> Result<Reserve, UnknownComponent> {
        self.lane().reserve(component, rows)
    }

    /// Returns a future that resolves when the queue has room for a pass of `rows` rows of every component. See [`reserve`](Self::reserve).
    ///
    /// # Errors
    /// The future yields a [`WriteError`] if the store or the lane takes no more rows, or if the lane has more rows of one component than
    /// of another.
    ///
    /// # Cancel safety
    /// If you drop the future, you lose only your place in line.
    pub fn reserve_pass(&self, rows: usize) -> Reserve {
        self.lane().reserve_pass(rows)
    }
}
