//! Gathers a pass component by component, and hands it over as a whole.

use std::fmt;
use std::sync::Arc;

use crate::ring_store::admission::NoRoomThen;
use crate::ring_store::queue::HandedOver;
use crate::ring_store::reserve::{LaneHandle, Permit};
use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::error::WriteError;
use crate::rows::layout::ComponentKey;
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
    /// The batch of each component, once it has come.
    batches: Vec<Option<Batch>>,
    /// The components in the order in which they came.
    came: Vec<usize>,
    value: Option<Arc<[u8]>>,
}

impl Pass {
    pub(crate) fn new(lane: LaneHandle) -> Self {
        let components = lane.shared.config.layout.n_components();
        Pass {
            lane,
            batches: (0..components).map(|_| None).collect(),
            came: Vec::with_capacity(components),
            value: None,
        }
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
        let (component, batch) = match self.lane.check(batch.into(), component)? {
            HandedOver::Batch(component, batch) => (component, batch),
            HandedOver::Pass(..) => return Ok(()),
        };
        if let Err(error) = self.check(component, &batch) {
            return Err(Refused { error, batch });
        }
        self.batches[component] = Some(batch);
        self.came.push(component);
        Ok(())
    }

    fn check(&self, component: usize, batch: &Batch) -> Result<(), WriteError> {
        let layout = &self.lane.shared.config.layout;
        if self.batches[component].is_some() {
            return Err(WriteError::PassDoubles { doubled: layout.name(component) });
        }
        let first = self.came.first().and_then(|&first| Some((first, self.batches[first].as_ref()?.rows())));
        match first {
            Some((first, first_rows)) if first_rows != batch.rows() => Err(WriteError::PassRows {
                first: layout.name(first),
                first_rows,
                component: layout.name(component),
                rows: batch.rows(),
            }),
            _ => Ok(()),
        }
    }

    /// Adds the batch of every component. On an error, returns all batches.
    pub(crate) fn put_all<K: ComponentKey, B: Into<Batch>>(
        &mut self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<(), RefusedPass> {
        let mut pass = pass.into_iter();
        while let Some((component, batch)) = pass.next() {
            if let Err(Refused { error, batch }) = self.put(component, batch) {
                let mut batches = self.take_back();
                batches.push(batch);
                batches.extend(pass.map(|(_, batch)| batch.into()));
                return Err(RefusedPass { error, batches });
            }
        }
        Ok(())
    }

    /// Takes out the batches, in the order in which they came.
    fn take_back(&mut self) -> Vec<Batch> {
        self.came.drain(..).filter_map(|component| self.batches[component].take()).collect()
    }

    /// Hands the pass over as a whole, and returns at once, as [`RingStore::extend_pass`](crate::RingStore::extend_pass).
    ///
    /// # Errors
    /// [`RefusedPass`] returns all batches: as [`RingStore::extend_pass`](crate::RingStore::extend_pass), for example
    /// [`WriteError::PassLacks`] if a component is missing.
    pub fn commit(self) -> Result<WriteHandle, RefusedPass> {
        let lane = self.lane.clone();
        self.hand_over(|rows| lane.hand_over(rows, NoRoomThen::LineUp))
    }

    /// Hands the pass over as a whole if the queue has room, as
    /// [`RingStore::try_extend_pass`](crate::RingStore::try_extend_pass). Returns at once.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and [`WriteError::Full`] if the queue has no room.
    pub fn try_commit(self) -> Result<WriteHandle, RefusedPass> {
        let lane = self.lane.clone();
        self.hand_over(|rows| lane.hand_over(rows, NoRoomThen::Refuse))
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
        let lane = self.lane.clone();
        self.hand_over(|rows| lane.hand_over_blocking(rows)).map(drop)
    }

    pub(crate) fn hand_over(
        mut self,
        hand_over: impl FnOnce(HandedOver) -> Result<WriteHandle, (WriteError, HandedOver)>,
    ) -> Result<WriteHandle, RefusedPass> {
        if let Some(missing) = self.batches.iter().position(Option::is_none) {
            let missing = self.lane.shared.config.layout.name(missing);
            return Err(RefusedPass { error: WriteError::PassLacks { missing }, batches: self.take_back() });
        }
        let batches = self.batches.iter_mut().filter_map(Option::take).collect();
        let value = self.value.take();
        hand_over(HandedOver::Pass(batches, value)).map_err(|(error, rows)| {
            let batches = match rows {
                HandedOver::Pass(batches, _) => batches,
                HandedOver::Batch(_, batch) => vec![batch],
            };
            self.batches.iter_mut().zip(batches).for_each(|(place, batch)| *place = Some(batch));
            RefusedPass { error, batches: self.take_back() }
        })
    }
}

impl Permit {
    /// Hands over a gathered pass. Returns at once.
    ///
    /// # Errors
    /// As [`Pass::commit`]. Also [`WriteError::Full`] if the pass has more rows than are left, and [`WriteError::Permit`] if the
    /// permit is for one component.
    pub fn commit(mut self, pass: Pass) -> Result<WriteHandle, RefusedPass> {
        pass.hand_over(|rows| self.use_up(rows))
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
        let mut gathered = Pass::new(self.lane.clone());
        gathered.put_all(pass)?;
        gathered.hand_over(|rows| self.use_up(rows))
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("components", &self.came).finish_non_exhaustive()
    }
}
