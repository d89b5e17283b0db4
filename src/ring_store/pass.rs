//! Gathers a pass component by component, and hands it over as a whole.

use std::fmt;
use std::sync::Arc;

use crate::ring_store::reserve::{LaneHandle, Permit};
use crate::ring_store::room::NoRoomThen;
use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::error::WriteError;
use crate::rows::layout::ComponentKey;
use crate::rows::pass::{Gathered, WholePass};
use crate::waiting::handle::WriteHandle;

/// The rows of one forward pass, gathered from hooks that fire one by one.
///
/// No rows reach the store before [`commit`](Pass::commit). So if an error, a panic or a cancelled task drops the pass before, the
/// store has no part of it. Made by [`RingStore::begin_pass`](crate::RingStore::begin_pass) and
/// [`Producer::begin_pass`](crate::Producer::begin_pass).
///
/// ```
/// use activation_store::RingStore;
/// use ndarray::Array2;
///
/// let store = RingStore::builder().component("attn", 4).component("mlp", 4).batch_size(8).window(32).build()?;
/// let mut pass = store.begin_pass();
/// pass.put("mlp", Array2::<f32>::zeros((6, 4)))?;
/// pass.put("attn", Array2::<f32>::ones((6, 4)))?;
/// assert_eq!(pass.commit()?.wait()?.rows, 6);
///
/// let mut failed = store.begin_pass();
/// failed.put("attn", Array2::<f32>::ones((6, 4)))?;
/// drop(failed); // the model raised an error
/// assert_eq!(store.len(), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a pass reaches the store only when it is committed"]
pub struct Pass {
    lane: LaneHandle,
    gathered: Gathered,
    value: Option<Arc<[u8]>>,
}

impl Pass {
    pub(crate) fn new(lane: LaneHandle) -> Self {
        let gathered = Gathered::new(&lane.shared.config.layout);
        Pass { lane, gathered, value: None }
    }

    /// Begins a pass with the batches of all components. On an error, returns all batches.
    pub(crate) fn of<K: ComponentKey, B: Into<Batch>>(
        lane: LaneHandle,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<Self, RefusedPass> {
        let gathered = Gathered::all(&lane.shared.config.layout, pass)?;
        Ok(Pass { lane, gathered, value: None })
    }

    /// Attaches a small value of your own to the pass, for example the position of the data loader after the pass.
    ///
    /// Replaces an earlier value. A snapshot keeps the value. A resumed store returns the value of the last pass that you need not
    /// send again: [`ResumeAt::value`](crate::ResumeAt::value).
    pub fn attach(&mut self, value: impl Into<Box<[u8]>>) {
        self.value = Some(Arc::from(value.into()));
    }

    /// Adds the rows of a component, `[rows, features]`.
    ///
    /// # Errors
    /// [`Refused`] returns the batch. The component, features or element type are wrong, as for
    /// [`RingStore::extend`](crate::RingStore::extend); or [`WriteError::PassDoubles`] if the pass already has the component; or
    /// [`WriteError::PassRows`] if the number of rows differs from the first component's. The pass stays as it was.
    pub fn put(&mut self, component: impl ComponentKey, batch: impl Into<Batch>) -> Result<(), Refused> {
        self.gathered.put(&self.lane.shared.config.layout, component, batch)
    }

    /// Hands the pass over as a whole, and returns at once, as [`RingStore::extend_pass`](crate::RingStore::extend_pass).
    ///
    /// # Errors
    /// [`RefusedPass`] returns all batches: as [`RingStore::extend_pass`](crate::RingStore::extend_pass), for example
    /// [`WriteError::PassLacks`] if a component is missing.
    pub fn commit(self) -> Result<WriteHandle, RefusedPass> {
        self.hand_over(|lane, pass, value| lane.pass(pass, value, NoRoomThen::LineUp))
    }

    /// Hands the pass over as a whole if the queue has room, as
    /// [`RingStore::try_extend_pass`](crate::RingStore::try_extend_pass). Returns at once.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and [`WriteError::Full`] if the queue has no room.
    pub fn try_commit(self) -> Result<WriteHandle, RefusedPass> {
        self.hand_over(|lane, pass, value| lane.pass(pass, value, NoRoomThen::Refuse))
    }

    /// Waits until the queue has room, then hands the pass over as a whole, as
    /// [`RingStore::extend_pass_blocking`](crate::RingStore::extend_pass_blocking).
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    ///
    /// # Blocking
    /// Blocks this thread until the queue has room, because consumers have taken minibatches, or the store takes no more rows.
    pub fn commit_blocking(self) -> Result<(), RefusedPass> {
        self.hand_over(LaneHandle::pass_blocking).map(drop)
    }

    fn hand_over(
        self,
        hand_over: impl FnOnce(&LaneHandle, WholePass, &Option<Arc<[u8]>>) -> Result<WriteHandle, (WriteError, WholePass)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let pass = self.gathered.whole(&self.lane.shared.config.layout)?;
        hand_over(&self.lane, pass, &self.value).map_err(|(error, pass)| pass.refused(error))
    }
}

const OTHER_LANE: WriteError =
    WriteError::Permit { holds: "a pass of its own lane", call: "begin_pass on the lane that the permit is of" };

impl Permit {
    /// Hands over a gathered pass. Returns at once.
    ///
    /// # Errors
    /// As [`Pass::commit`]. Also [`WriteError::Full`] if the pass has more rows than are left, and [`WriteError::Permit`] if the
    /// permit is for one component.
    pub fn commit(mut self, pass: Pass) -> Result<WriteHandle, RefusedPass> {
        self.commit_some(pass)
    }

    /// As [`commit`](Self::commit), but keeps the room that the pass does not need.
    pub(crate) fn commit_some(&mut self, pass: Pass) -> Result<WriteHandle, RefusedPass> {
        pass.hand_over(
            |lane, pass, value| {
                if lane.is(&self.lane) { self.pass(pass, value) } else { Err((OTHER_LANE, pass)) }
            },
        )
    }

    /// Hands over the pass that the permit is for. Returns at once.
    ///
    /// # Errors
    /// As [`RingStore::extend_pass`](crate::RingStore::extend_pass). Also [`WriteError::Full`] if the pass has more rows than are
    /// left, and [`WriteError::Permit`] if the permit is for one component.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        mut self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        Pass::of(self.lane.clone(), pass)?.hand_over(|_, pass, value| self.pass(pass, value))
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("components", &self.gathered.order()).finish_non_exhaustive()
    }
}
