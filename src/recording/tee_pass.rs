//! Gathers a pass for a ring and a recorder, and hands it to both or to neither.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::recording::catch_up::Lacks;
use crate::recording::reserve::{RecorderPermit, RecorderReserve};
use crate::recording::tee::Tee;
use crate::ring_store::builder::WhenFull;
use crate::ring_store::pass::Pass;
use crate::ring_store::reserve::{Permit, Reserve};
use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::layout::ComponentKey;
use crate::rows::pass::{Gathered, WholePass, check};
use crate::waiting::handle::{WriteHandle, Written};
use crate::waiting::wait::wait_for;

impl Tee {
    /// Hands the rows of all components that one forward pass produced to the ring and to the recorder.
    ///
    /// `pass` has every component exactly once, in any order. All batches, `[rows, features]`, have the same number of rows. The handle
    /// resolves when the ring and the recorder have both released the batches. It gives the first error, or else the outcome of the ring.
    /// Passes of several threads have the same order in the ring and in the recording.
    ///
    /// # Errors
    /// [`RefusedPass`] gives all batches back. Then neither the ring nor the recorder has a row of the pass. See
    /// [`RingStore::extend_pass`](crate::RingStore::extend_pass) and [`Recorder::extend_pass`](crate::Recorder::extend_pass) for the cases.
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk. While the ring is full, the pass waits in line, and the caller does not. Memory is bounded
    /// only if you await the handle, or use [`extend_pass_blocking`](Self::extend_pass_blocking) or [`reserve_pass`](Self::reserve_pass).
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        TeePass::of(self, pass)?.commit()
    }

    /// Hands a pass over as [`extend_pass`](Self::extend_pass) does, if the recorder and the ring have room. Returns at once.
    ///
    /// # Errors
    /// Same as [`extend_pass`](Self::extend_pass), and [`WriteError::Full`] if the ring or the recorder has no room.
    pub fn try_extend_pass<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        TeePass::of(self, pass)?.try_commit()
    }

    /// Waits until the recorder and the ring have room, then hands the pass over.
    ///
    /// Does not wait for the ring if the ring rejects passes when it is full ([`WhenFull::Reject`]).
    ///
    /// # Errors
    /// Same as [`extend_pass`](Self::extend_pass).
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk, and while the ring is full.
    pub fn extend_pass_blocking<K: ComponentKey, B: Into<Batch>>(
        &self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<(), RefusedPass> {
        TeePass::of(self, pass)?.commit_blocking()
    }

    /// Hands a pass to the ring, to the recorder, or to both: to the ones that lack it. See
    /// [`CatchUp`](crate::CatchUp).
    ///
    /// If both lack the pass, this is [`extend_pass`](Self::extend_pass). If neither does, the pass is dropped, and the handle has no rows.
    ///
    /// # Errors
    /// As [`extend_pass`](Self::extend_pass). A pass that is refused comes back, and neither has it.
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk, if the recording lacks the pass. To bound the memory of the ring's passes, await the handle.
    pub fn catch_up<K: ComponentKey, B: Into<Batch>>(
        &self,
        lacks: Lacks,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        TeePass::of(self, pass)?.commit_to(lacks)
    }

    /// Begins a pass whose components come one by one.
    pub fn begin_pass(&self) -> TeePass<'_> {
        TeePass { tee: self, ring: self.ring().begin_pass(), gathered: Gathered::new(&self.recorder().layout) }
    }

    /// Waits in line for room for a pass of `rows` rows: first in the recorder, then in the ring. Returns at once; see [`TeeReserve`] for the
    /// wait.
    pub fn reserve_pass(&self, rows: usize) -> TeeReserve<'_> {
        let (recorder, ring) = (self.recorder().reserve_pass(), self.ring().reserve_pass(rows));
        TeeReserve { tee: self, recorder, permit: None, ring }
    }
}

/// The rows of one forward pass, gathered from hooks that fire one by one, for a ring and a recorder.
///
/// Nothing reaches either before [`commit`](Self::commit). So if an error, a panic or a cancelled task drops the pass before, neither has a
/// part of it. Made by [`Tee::begin_pass`].
///
/// ```
/// use activation_store::{Recorder, RingStore, Tee};
/// use ndarray::Array2;
///
/// # let dir = std::env::temp_dir().join(format!("tee-pass-doc-{}", std::process::id()));
/// let store = RingStore::builder().component("attn", 4).component("mlp", 4).batch_size(8).window(32).build()?;
/// let recorder = Recorder::builder().component("attn", 4).component("mlp", 4).create(&dir)?;
/// let tee = Tee::new(store.producer()?, recorder)?;
/// let mut pass = tee.begin_pass();
/// pass.put("mlp", Array2::<f32>::zeros((6, 4)))?;
/// pass.put("attn", Array2::<f32>::ones((6, 4)))?;
/// assert_eq!(pass.commit()?.wait()?.rows, 6);
///
/// let mut failed = tee.begin_pass();
/// failed.put("attn", Array2::<f32>::ones((6, 4)))?;
/// drop(failed); // the model raised an error
/// assert_eq!((store.len(), tee.finish()?.rows), (6, 6));
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a pass reaches the ring and the recording only when it is committed"]
pub struct TeePass<'a> {
    tee: &'a Tee,
    /// The ring's share of the batches.
    ring: Pass,
    /// The recorder's share.
    gathered: Gathered,
}

impl<'a> TeePass<'a> {
    /// Begins a pass with the batches of all components. On an error, returns all batches.
    pub(crate) fn of<K: ComponentKey, B: Into<Batch>>(
        tee: &'a Tee,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<Self, RefusedPass> {
        let mut gathered = tee.begin_pass();
        let mut pass = pass.into_iter();
        while let Some((component, batch)) = pass.next() {
            if let Err(Refused { error, batch }) = gathered.put(component, batch) {
                let mut batches = gathered.gathered.take_back();
                batches.push(batch);
                batches.extend(pass.map(|(_, batch)| batch.into()));
                return Err(RefusedPass { error, batches });
            }
        }
        Ok(gathered)
    }

    /// Adds the rows of a component, `[rows, features]`.
    ///
    /// # Errors
    /// [`Refused`] returns the batch, and the pass stays as it was: if the component, features or element type are wrong for the recorder or
    /// for the ring; or [`WriteError::PassDoubles`] if the pass already has the component; or [`WriteError::PassRows`] if the number of rows
    /// differs from the first component's.
    pub fn put(&mut self, component: impl ComponentKey, batch: impl Into<Batch>) -> Result<(), Refused> {
        let layout = &self.tee.recorder().layout;
        let (component, batch) = check(layout, component, batch.into())?;
        let (for_ring, for_recorder) = batch.share();
        self.ring.put(component, for_ring)?;
        // Both have the same components, so this is refused only if the ring has refused its share.
        self.gathered.put(layout, component, for_recorder)
    }

    /// Attaches a small value of your own to the pass, for a snapshot of the ring: see [`Pass::attach`].
    pub fn attach(&mut self, value: impl Into<Box<[u8]>>) {
        self.ring.attach(value);
    }

    /// Hands the pass over as [`Tee::extend_pass`] does.
    ///
    /// # Errors
    /// As [`Tee::extend_pass`], for example [`WriteError::PassLacks`] if a component is missing.
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk.
    pub fn commit(self) -> Result<WriteHandle, RefusedPass> {
        let (tee, ring, pass) = self.whole()?;
        let room = tee.recorder().room.take();
        tee.recorder().record_with(pass, room, || ring.commit())
    }

    /// Hands the pass over as [`Tee::try_extend_pass`] does. Returns at once.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and [`WriteError::Full`] if the ring or the recorder has no room.
    pub fn try_commit(self) -> Result<WriteHandle, RefusedPass> {
        let (tee, ring, pass) = self.whole()?;
        match tee.recorder().try_take_room() {
            Ok(room) => tee.recorder().record_with(pass, room, || ring.try_commit()),
            Err(error) => Err(pass.refused(error)),
        }
    }

    /// Waits for room and hands the pass over, as [`Tee::extend_pass_blocking`] does.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk, and while the ring is full.
    pub fn commit_blocking(self) -> Result<(), RefusedPass> {
        if self.tee.ring().shared().config.when_full == WhenFull::Reject {
            return self.commit().map(drop);
        }
        let (tee, ring, pass) = self.whole()?;
        match tee.reserve_pass(pass.rows()).wait() {
            Ok(permit) => permit.hand_over(ring, pass).map(drop),
            Err(error) => Err(pass.refused(error)),
        }
    }

    /// Hands the pass to the ones that lack it, as [`Tee::catch_up`] does.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    ///
    /// # Blocking
    /// Blocks while two passes wait for the disk, if the recording lacks the pass.
    pub fn commit_to(self, lacks: Lacks) -> Result<WriteHandle, RefusedPass> {
        if lacks.ring && lacks.recording {
            return self.commit();
        }
        let (tee, ring, pass) = self.whole()?;
        if lacks.ring {
            ring.commit()
        } else if lacks.recording {
            tee.recorder().commit(pass)
        } else {
            Ok(WriteHandle::ready(Ok(Written { rows: 0, first_row: 0 })))
        }
    }

    /// Checks that every component has come. Returns the shares of the ring and of the recorder.
    fn whole(self) -> Result<(&'a Tee, Pass, WholePass), RefusedPass> {
        let pass = self.gathered.whole(&self.tee.recorder().layout)?;
        Ok((self.tee, self.ring, pass))
    }
}

/// A future that resolves when a recorder and a ring have room for a pass, with a [`TeePermit`] to use the room.
///
/// It waits for the recorder first. While it waits for the ring, it keeps its room in the recorder, which has room for two passes. Any
/// executor can poll the future. A thread can [`wait`](Self::wait). Made by [`Tee::reserve_pass`].
///
/// The future takes its place in line at the first poll. Keep polling it, or drop it: while it has the first place in line, the callers
/// behind it wait.
///
/// # Errors
/// The future yields [`WriteError`] if the recorder, the ring or its lane takes no more passes.
///
/// # Cancel safety
/// Dropping the future gives up its place in line and its room in the recorder, and has no other effect.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use activation_store::{Recorder, RingStore, Tee};
/// use ndarray::Array2;
///
/// # let dir = std::env::temp_dir().join(format!("tee-reserve-doc-{}", std::process::id()));
/// let store = RingStore::builder().component("mlp", 4).batch_size(8).window(32).build()?;
/// let tee = Tee::new(store.producer()?, Recorder::builder().component("mlp", 4).create(&dir)?)?;
/// let permit = tee.reserve_pass(5).await?; // waits while the ring is full, or two passes wait for the disk
/// let rows = Array2::<f32>::ones((5, 4)); // the model runs here
/// let _ = permit.extend_pass([("mlp", rows)])?; // does not wait
/// assert_eq!(tee.finish()?.rows, 5);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok(())
/// # }
/// # futures::executor::block_on(example()).unwrap();
/// ```
#[must_use = "nothing is reserved until it is awaited"]
pub struct TeeReserve<'a> {
    tee: &'a Tee,
    recorder: RecorderReserve<'a>,
    /// The room in the recorder, while this waits for the ring.
    permit: Option<RecorderPermit<'a>>,
    ring: Reserve,
}

/// Room for one pass in a recorder and in a ring. Made by [`Tee::reserve_pass`]. Dropping it gives the room back.
#[must_use = "the room is given back when the permit is dropped"]
pub struct TeePermit<'a> {
    tee: &'a Tee,
    recorder: RecorderPermit<'a>,
    ring: Permit,
}

impl<'a> TeeReserve<'a> {
    /// Blocks this thread until there is room. Works inside and outside a runtime.
    ///
    /// # Errors
    /// As the future: [`WriteError`] if the recorder, the ring or its lane takes no more passes.
    ///
    /// # Panics
    /// Panics if the future has resolved before.
    pub fn wait(mut self) -> Result<TeePermit<'a>, WriteError> {
        // There is no deadline, so there is an outcome.
        wait_for(&mut self, None).unwrap_or(Err(ClosedBy::Close.into()))
    }

    /// Blocks this thread until there is room, but no longer than `timeout`. `None` if there is no room by then. The future then keeps its
    /// place in line.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// Panics if the future has resolved before.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<TeePermit<'a>, WriteError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }
}

impl<'a> Future for TeeReserve<'a> {
    type Output = Result<TeePermit<'a>, WriteError>;

    /// # Panics
    /// Panics if you poll the future after it has resolved.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let TeeReserve { tee, recorder, permit, ring } = &mut *self;
        let recorder = match permit.take() {
            Some(permit) => permit,
            None => match ready!(Pin::new(recorder).poll(context)) {
                Ok(permit) => permit,
                Err(error) => return Poll::Ready(Err(error)),
            },
        };
        match Pin::new(ring).poll(context) {
            Poll::Ready(ring) => Poll::Ready(ring.map(|ring| TeePermit { tee, recorder, ring })),
            Poll::Pending => {
                *permit = Some(recorder);
                Poll::Pending
            }
        }
    }
}

impl TeePermit<'_> {
    /// The number of rows that the pass may have.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ring.rows()
    }

    /// Hands a pass over as [`Tee::extend_pass`] does, and does not wait.
    ///
    /// # Errors
    /// Same as [`Tee::extend_pass`]. Also [`WriteError::Full`] if the pass has more rows than the permit.
    pub fn extend_pass<K: ComponentKey, B: Into<Batch>>(
        self,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<WriteHandle, RefusedPass> {
        let pass = TeePass::of(self.tee, pass)?;
        self.commit(pass)
    }

    /// Hands a gathered pass over, and does not wait.
    ///
    /// # Errors
    /// As [`TeePass::commit`]. Also [`WriteError::Full`] if the pass has more rows than the permit, and [`WriteError::Permit`] if the pass
    /// was begun on another tee.
    pub fn commit(self, pass: TeePass<'_>) -> Result<WriteHandle, RefusedPass> {
        let (tee, ring, pass) = pass.whole()?;
        if std::ptr::eq(tee, self.tee) {
            return self.hand_over(ring, pass);
        }
        let call = "reserve_pass on the tee of the pass";
        Err(pass.refused(WriteError::Permit { holds: "a pass of another tee", call }))
    }

    /// Hands over the shares of the ring and of the recorder.
    fn hand_over(self, ring: Pass, pass: WholePass) -> Result<WriteHandle, RefusedPass> {
        // The room that is left wakes other callers, so it is given back once the recorder's entrance is free.
        let TeePermit { recorder, ring: mut permit, .. } = self;
        recorder.record_with(pass, || permit.commit_some(ring))
    }
}

impl fmt::Debug for TeePass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TeePass").field("components", &self.gathered.order()).finish_non_exhaustive()
    }
}

impl fmt::Debug for TeeReserve<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TeeReserve").field("ring", &self.ring).finish_non_exhaustive()
    }
}

impl fmt::Debug for TeePermit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TeePermit").field("ring", &self.ring).finish_non_exhaustive()
    }
}
