//! A producer's end of a lane, and the future of a caller that waits in line for room in the queue.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::ring_store::admission::NoRoomThen;
use crate::ring_store::builder::WhenFull;
use crate::ring_store::core::Shared;
use crate::ring_store::queue::{Demand, HandedOver};
use crate::rows::batch::{Batch, Refused};
use crate::rows::error::WriteError;
use crate::rows::full::{NoRoom, StoreFullError};
use crate::rows::layout::ComponentKey;
use crate::rows::pass::check;
use crate::waiting::handle::WriteHandle;
use crate::waiting::wait::{wait_for, wait_long};

/// A producer's end of a lane. The handle keeps neither the lane nor the store open.
#[derive(Clone)]
pub(crate) struct LaneHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: u64,
}

impl LaneHandle {
    pub(crate) fn hand_over(
        &self,
        rows: HandedOver,
        no_room: NoRoomThen,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        self.shared.hand_over(self.id, rows, no_room)
    }

    /// Waits until there is room, and hands the rows over. Does not wait if the store rejects rows that it has no room for.
    pub(crate) fn hand_over_blocking(&self, rows: HandedOver) -> Result<WriteHandle, (WriteError, HandedOver)> {
        match self.hand_over(rows, NoRoomThen::RefuseBehindOthers) {
            Err((WriteError::Full(_), rows)) if self.shared.config.when_full != WhenFull::Reject => {
                match self.reserve(rows.demand()).wait() {
                    Ok(permit) => permit.hand_over(rows),
                    Err(error) => Err((error, rows)),
                }
            }
            outcome => outcome,
        }
    }

    pub(crate) fn reserve(&self, demand: Demand) -> Reserve {
        Reserve { lane: self.clone(), demand, ticket: None, done: false }
    }

    /// Checks a batch for a component, and returns it in the form that `hand_over` takes.
    pub(crate) fn check(&self, batch: Batch, component: impl ComponentKey) -> Result<HandedOver, Refused> {
        let (component, batch) = check(&self.shared.config.layout, component, batch)?;
        Ok(HandedOver::Batch(component, batch))
    }
}

/// Makes the refusal of one batch.
pub(crate) fn refused((error, rows): (WriteError, HandedOver)) -> Refused {
    let batch = match rows {
        HandedOver::Batch(_, batch) => Some(batch),
        HandedOver::Pass(pass, _) => pass.into_batches().pop(),
    };
    match batch {
        Some(batch) => Refused { error, batch },
        None => Refused { error, batch: Vec::<f32>::new().into() },
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
    demand: Demand,
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
        let own = shared.change(|state, afterwards| state.admission.leave_line(*id, ticket, &mut afterwards.wakers));
        drop(own);
    }
}

impl Future for Reserve {
    type Output = Result<Permit, WriteError>;

    /// # Panics
    /// Panics if you poll the future after it has resolved.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.done, "a reservation is polled after it has resolved");
        let Reserve { lane, demand, ticket, .. } = &mut *self;
        let mut waker = Some(context.waker().clone());
        let outcome = {
            let mut state = lane.shared.lock();
            let open = state.status.check();
            let outcome = open.and_then(|()| state.admission.try_reserve(lane.id, *demand, *ticket));
            if let (Ok(false), Some(waiting)) = (&outcome, waker.take()) {
                (*ticket, waker) = state.admission.queue_up(lane.id, *ticket, *demand, waiting);
            }
            outcome
        };
        // Dropping a waker may run foreign code, so the mutex is free by now.
        drop(waker);
        let permit = match outcome {
            Ok(false) => return Poll::Pending,
            Ok(true) => {
                Ok(Permit { lane: lane.clone(), component: demand.component, reserved: demand.rows, left: demand.rows })
            }
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
        f.debug_struct("Reserve").field("demand", &self.demand).finish_non_exhaustive()
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
        let rows = self.lane.check(batch.into(), component)?;
        self.use_up(rows).map_err(refused)
    }

    /// Hands over the rows that the permit is for.
    pub(crate) fn hand_over(mut self, rows: HandedOver) -> Result<WriteHandle, (WriteError, HandedOver)> {
        self.use_up(rows)
    }

    pub(crate) fn use_up(&mut self, rows: HandedOver) -> Result<WriteHandle, (WriteError, HandedOver)> {
        let demand = rows.demand();
        if demand.component != self.component {
            return Err((WriteError::Permit { holds: "one component", call: "extend" }, rows));
        }
        if demand.rows > self.left {
            let layout = &self.lane.shared.config.layout;
            let component = layout.name(demand.component.unwrap_or(0));
            let no_room = NoRoom { component, rows: demand.rows, held: 0, bound: self.left };
            return Err((StoreFullError::permit(no_room, self.reserved).into(), rows));
        }
        let handle = self.lane.shared.hand_over_reserved(self.lane.id, rows)?;
        self.left -= demand.rows;
        Ok(handle)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.left == 0 {
            return;
        }
        let LaneHandle { shared, id } = &self.lane;
        let demand = Demand { component: self.component, rows: self.left };
        shared.change(|state, afterwards| state.admission.release(*id, demand, &mut afterwards.wakers));
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("rows", &self.left).finish_non_exhaustive()
    }
}
