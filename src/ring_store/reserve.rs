//! A producer's end of a lane, and the future of a caller that waits in line for room in the queue.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::ring_store::books::Books;
use crate::ring_store::builder::WhenFull;
use crate::ring_store::core::Shared;
use crate::ring_store::room::NoRoomThen;
use crate::rows::batch::{Batch, Refused};
use crate::rows::error::WriteError;
use crate::rows::full::{NoRoom, StoreFullError};
use crate::rows::layout::ComponentKey;
use crate::rows::pass::{WholePass, check};
use crate::waiting::handle::WriteHandle;
use crate::waiting::wait::{wait_for, wait_long};

/// A producer's end of a lane. The handle keeps neither the lane nor the store open.
#[derive(Clone)]
pub(crate) struct LaneHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: u64,
}

impl LaneHandle {
    /// Hands over a whole pass, and the value that the user attached to it.
    pub(crate) fn pass(
        &self,
        pass: WholePass,
        value: &Option<Arc<[u8]>>,
        no_room: NoRoomThen,
    ) -> Result<WriteHandle, (WriteError, WholePass)> {
        self.shared.hand_over(self.id, pass, value, |books, rows| books.admit(self.id, None, rows, no_room))
    }

    /// As [`pass`](Self::pass), but waits until there is room. Does not wait if the store rejects rows that it has no room for.
    pub(crate) fn pass_blocking(
        &self,
        pass: WholePass,
        value: &Option<Arc<[u8]>>,
    ) -> Result<WriteHandle, (WriteError, WholePass)> {
        match self.pass(pass, value, NoRoomThen::RefuseBehindOthers) {
            Err((WriteError::Full(_), pass)) if self.waits() => match self.reserve(None, pass.rows()).wait() {
                Ok(mut permit) => permit.pass(pass, value),
                Err(error) => Err((error, pass)),
            },
            outcome => outcome,
        }
    }

    /// Hands over rows of one component.
    pub(crate) fn component(
        &self,
        (component, batch): (usize, Batch),
        no_room: NoRoomThen,
    ) -> Result<WriteHandle, Refused> {
        let admit = |books: &mut Books, rows| books.admit(self.id, Some(component), rows, no_room);
        self.shared.hand_over_component(self.id, component, batch, admit)
    }

    /// As [`component`](Self::component), but waits until there is room. Does not wait if the store rejects rows that it has no room for.
    pub(crate) fn component_blocking(&self, (component, batch): (usize, Batch)) -> Result<WriteHandle, Refused> {
        match self.component((component, batch), NoRoomThen::RefuseBehindOthers) {
            Err(Refused { error: WriteError::Full(_), batch }) if self.waits() => {
                match self.reserve(Some(component), batch.rows()).wait() {
                    Ok(mut permit) => permit.component(component, batch),
                    Err(error) => Err(Refused { error, batch }),
                }
            }
            outcome => outcome,
        }
    }

    /// Whether this is the same lane of the same store.
    pub(crate) fn is(&self, other: &LaneHandle) -> bool {
        self.id == other.id && Arc::ptr_eq(&self.shared, &other.shared)
    }

    fn waits(&self) -> bool {
        self.shared.config.when_full != WhenFull::Reject
    }

    pub(crate) fn reserve(&self, component: Option<usize>, rows: usize) -> Reserve {
        Reserve { lane: self.clone(), component, rows, ticket: None, done: false }
    }

    /// Checks a batch for a component.
    pub(crate) fn check(&self, batch: Batch, component: impl ComponentKey) -> Result<(usize, Batch), Refused> {
        check(&self.shared.config.layout, component, batch)
    }
}

/// A future that resolves when there is room in the queue, with a [`Permit`] to use the room.
///
/// The store serves callers in the order in which they came. Any executor can poll the future. A thread can
/// [`wait`](Reserve::wait). Made by [`RingStore::reserve`](crate::RingStore::reserve) and
/// [`reserve_pass`](crate::RingStore::reserve_pass).
///
/// The future takes its place in line at the first poll. Keep polling it, or drop it: while it has the first place in line, the
/// callers behind it wait.
///
/// # Errors
/// The future yields [`WriteError`] if the store or the lane takes no more rows, or the component would run too far ahead of
/// another.
///
/// # Cancel safety
/// Dropping the future gives up its place in line, and has no other effect.
#[must_use = "nothing is reserved until it is awaited"]
pub struct Reserve {
    lane: LaneHandle,
    /// `None` for a pass.
    component: Option<usize>,
    rows: usize,
    /// The place in line. `None` before the first wait.
    ticket: Option<u64>,
    done: bool,
}

impl Reserve {
    /// Blocks this thread until there is room. Works inside and outside a runtime.
    ///
    /// # Errors
    /// As the future: [`WriteError`] if the store or the lane takes no more rows, or the component would run too far ahead.
    ///
    /// # Panics
    /// Panics if the future has resolved before.
    pub fn wait(mut self) -> Result<Permit, WriteError> {
        let shared = self.lane.shared.clone();
        let outcome = wait_long(|context| Pin::new(&mut self).poll(context), || shared.notice_waiting_producer());
        // There is no deadline, so there is an outcome.
        outcome.unwrap_or(Err(WriteError::Full(StoreFullError::default())))
    }

    /// Blocks this thread until there is room, but no longer than `timeout`. `None` if there is no room by then. The future then
    /// keeps its place in line.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// Panics if the future has resolved before.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<Permit, WriteError>> {
        wait_for(self, Instant::now().checked_add(timeout))
    }

    fn leave_line(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let LaneHandle { shared, id } = &self.lane;
        let own = shared.change(|state, afterwards| state.books.leave_line(*id, ticket, &mut afterwards.wakers));
        drop(own);
    }
}

impl Future for Reserve {
    type Output = Result<Permit, WriteError>;

    /// # Panics
    /// Panics if you poll the future after it has resolved.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.done, "a reservation is polled after it has resolved");
        let Reserve { lane, component, rows, ticket, .. } = &mut *self;
        let mut waker = Some(context.waker().clone());
        let outcome = {
            let mut state = lane.shared.lock();
            let open = state.status.check();
            let outcome = open.and_then(|()| state.books.try_reserve(lane.id, *component, *rows, *ticket));
            if matches!(outcome, Ok(false))
                && let Some(waiting) = waker.take()
            {
                (*ticket, waker) = state.books.queue_up(lane.id, *ticket, (*component, *rows), waiting);
            }
            outcome
        };
        // Dropping a waker may run foreign code, so the mutex is free by now.
        drop(waker);
        let permit = match outcome {
            Ok(false) => return Poll::Pending,
            Ok(true) => Ok(Permit { lane: lane.clone(), component: *component, reserved: *rows, left: *rows }),
            Err(error) => Err(error),
        };
        self.done = true;
        self.leave_line();
        Poll::Ready(permit)
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.leave_line();
    }
}

impl fmt::Debug for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserve").field("rows", &self.rows).finish_non_exhaustive()
    }
}

/// Room in the queue that no other caller can take, for rows of one component or of a pass.
///
/// You may hand over the rows of a component in several batches. Dropping the permit gives back the room that you did not use.
#[must_use = "dropping a permit gives the room back"]
pub struct Permit {
    pub(crate) lane: LaneHandle,
    /// `None` for a pass.
    component: Option<usize>,
    /// The number of rows that were reserved.
    reserved: usize,
    /// The number of rows that may still be handed over.
    left: usize,
}

impl Permit {
    /// The number of rows that you may still hand over.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.left
    }

    /// Hands over a batch of the permit's component, `[rows, features]`. Returns at once.
    ///
    /// # Errors
    /// As [`RingStore::extend`](crate::RingStore::extend). Also [`WriteError::Full`] if the batch has more rows than are left, and
    /// [`WriteError::Permit`] if the permit is for a pass.
    pub fn extend(&mut self, batch: impl Into<Batch>) -> Result<WriteHandle, Refused> {
        let Some(component) = self.component else {
            return Err(Refused {
                error: WriteError::Permit { holds: "a pass", call: "extend_pass" },
                batch: batch.into(),
            });
        };
        let (component, batch) = self.lane.check(batch.into(), component)?;
        self.component(component, batch)
    }

    /// Hands over rows of one component.
    pub(crate) fn component(&mut self, component: usize, batch: Batch) -> Result<WriteHandle, Refused> {
        let rows = batch.rows();
        if let Err(error) = self.check(Some(component), rows) {
            return Err(Refused { error, batch });
        }
        let LaneHandle { shared, id } = &self.lane;
        let handle = shared.hand_over_component(*id, component, batch, |books, rows| {
            books.check(*id, Some(component), rows)?;
            books.use_reserved(*id, Some(component), rows);
            Ok(())
        })?;
        self.left -= rows;
        Ok(handle)
    }

    /// Hands over a whole pass.
    pub(crate) fn pass(
        &mut self,
        pass: WholePass,
        value: &Option<Arc<[u8]>>,
    ) -> Result<WriteHandle, (WriteError, WholePass)> {
        let rows = pass.rows();
        if let Err(error) = self.check(None, rows) {
            return Err((error, pass));
        }
        let LaneHandle { shared, id } = &self.lane;
        let handle = shared.hand_over(*id, pass, value, |books, rows| {
            books.check(*id, None, rows)?;
            books.use_reserved(*id, None, rows);
            Ok(())
        })?;
        self.left -= rows;
        Ok(handle)
    }

    /// Checks that the permit is for these rows, and has room for them.
    fn check(&self, component: Option<usize>, rows: usize) -> Result<(), WriteError> {
        if component != self.component {
            return Err(WriteError::Permit { holds: "one component", call: "extend" });
        }
        if rows > self.left {
            let component = self.lane.shared.config.layout.name(component.unwrap_or(0));
            let no_room = NoRoom { component, rows, held: 0, bound: self.left };
            return Err(StoreFullError::permit(no_room, self.reserved).into());
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.left == 0 {
            return;
        }
        let LaneHandle { shared, id } = &self.lane;
        shared.change(|state, afterwards| state.books.release(*id, self.component, self.left, &mut afterwards.wakers));
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("rows", &self.left).finish_non_exhaustive()
    }
}
