//! Lanes and rows, as producers hand them over.

use std::sync::Arc;

use crate::ring_store::admission::{Admission, NoRoomThen, Opened};
use crate::ring_store::afterwards::Afterwards;
use crate::ring_store::core::Shared;
use crate::ring_store::queue::{Demand, HandedOver, Message, Write};
use crate::ring_store::snapshot::journal::Passes;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::waiting::handle::{WriteHandle, Written};

impl Shared {
    /// Opens a lane, and returns its number.
    pub(crate) fn open_lane(&self, name: Option<Arc<str>>) -> Result<u64, WriteError> {
        let mut state = self.lock();
        state.status.check()?;
        let Opened { id, resumed } = state.admission.open_lane(name.clone())?;
        if !resumed {
            state.journal.open(id, name);
            let _ = self.queue.send(Message::OpenLane(id));
        }
        Ok(id)
    }

    /// Notes that a lane of a resumed store is sent again from its first row on.
    pub(crate) fn send_again(&self, lane: u64) -> Result<(), WriteError> {
        let mut state = self.lock();
        state.status.check()?;
        state.admission.send_again(lane)?;
        let _ = self.queue.send(Message::SendAgain(lane));
        Ok(())
    }

    /// Ends a lane: the lane takes no more rows.
    pub(crate) fn close_lane(&self, lane: u64) {
        self.change(|state, afterwards| {
            if state.admission.close_lane(lane, &mut afterwards.wakers) {
                let _ = self.queue.send(Message::CloseLane(lane));
            }
        });
    }

    /// Checks rows, counts them, and sends them to the writer. Returns refused rows with the error.
    pub(crate) fn hand_over(
        &self,
        lane: u64,
        rows: HandedOver,
        no_room: NoRoomThen,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        self.send(lane, rows, |admission, demand| admission.admit(lane, demand, no_room))
    }

    /// As [`hand_over`](Self::hand_over), for rows whose room in the queue is reserved.
    pub(crate) fn hand_over_reserved(
        &self,
        lane: u64,
        rows: HandedOver,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        self.send(lane, rows, |admission, demand| {
            let first_row = admission.check(lane, demand)?;
            admission.use_reserved(lane, demand);
            Ok(first_row)
        })
    }

    fn send(
        &self,
        lane: u64,
        mut rows: HandedOver,
        admit: impl FnOnce(&mut Admission, Demand) -> Result<u64, WriteError>,
    ) -> Result<WriteHandle, (WriteError, HandedOver)> {
        let demand = rows.demand();
        let (reply, handle) = WriteHandle::pending();
        let mut state = self.lock();
        let admitted = state.status.check().and_then(|()| admit(&mut state.admission, demand));
        let first_row = match admitted {
            Ok(first_row) => first_row,
            Err(error) => {
                drop(state);
                return Err((error, rows));
            }
        };
        if demand.rows > 0 {
            state.journal.handed_over(lane);
        }
        if let HandedOver::Pass(_, value) = &mut rows {
            state.journal.pass(lane, Passes::one(first_row, demand.rows as u64, value.take()));
        }
        if demand.rows == 0 {
            drop(state);
            return Ok(WriteHandle::ready(Ok(Written { rows: 0, first_row })));
        }
        // The writer receives messages as long as the status is open.
        let _ = self.queue.send(Message::Write(Write { lane, rows, first_row, reply }));
        let mut afterwards = Afterwards::default();
        state.admission.count_in(lane, demand, &mut afterwards.wakers);
        drop(state);
        self.run(&mut afterwards);
        Ok(handle)
    }

    /// Closes the store, because no handle is left that can write or make a consumer.
    pub(crate) fn remove_producers(&self) {
        self.change(|state, afterwards| {
            let by = if state.consumers > 0 { ClosedBy::Close } else { ClosedBy::NoConsumers };
            self.end(state, by, afterwards);
        });
    }
}
