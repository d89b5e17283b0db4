//! Takes passes into a recorder, as a whole or component by component.

use crossbeam_channel::Sender;

use crate::recording::lane_writer::LaneMessage;
use crate::recording::room::PassRoom;
use crate::recording::sealer::Progress;
use crate::rows::batch::{Batch, Refused};
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::layout::Layout;
use crate::rows::pass::{Gathered, WholePass};
use crate::waiting::handle::{WriteHandle, WriteReply};

/// Takes passes in.
///
/// It is behind a mutex. While the mutex is held, nothing is dropped that runs foreign code: a batch (its owner), a reply or room (a
/// waker). What does not go in is returned, and is dropped once the mutex is free.
pub(crate) struct Entrance {
    pub(crate) sender: Option<Sender<LaneMessage>>,
    /// The pass that comes component by component, and the callers that wait for its end.
    gathered: Gathered,
    replies: Vec<WriteReply>,
}

impl Entrance {
    pub(crate) fn new(sender: Sender<LaneMessage>, layout: &Layout) -> Self {
        Entrance { sender: Some(sender), gathered: Gathered::new(layout), replies: Vec::new() }
    }

    /// Checks that a whole pass can come in: there was no error, the recorder is open, and no other pass is half gathered.
    pub(crate) fn check(&self, layout: &Layout, progress: &Progress) -> Result<(), WriteError> {
        self.check_open(progress)?;
        if self.gathered.order().is_empty() { Ok(()) } else { Err(self.gathered.lacks(layout)) }
    }

    /// Checks that the recorder takes rows. The first error of the disk comes before the end.
    pub(crate) fn check_open(&self, progress: &Progress) -> Result<(), WriteError> {
        progress.outcome()?;
        if self.sender.is_some() { Ok(()) } else { Err(ClosedBy::Recorder.into()) }
    }

    /// Adds a batch to the pass that comes component by component. Once the pass is whole, [`take_whole`](Self::take_whole) has it.
    pub(crate) fn gather(
        &mut self,
        layout: &Layout,
        progress: &Progress,
        batch: Batch,
        component: usize,
    ) -> Result<WriteHandle, Refused> {
        if let Err(error) = self.check_open(progress) {
            return Err(Refused { error, batch });
        }
        self.gathered.put(layout, component, batch)?;
        let (reply, handle) = WriteHandle::pending();
        self.replies.push(reply);
        Ok(handle)
    }

    /// Takes out the pass that came component by component, and its callers, if it is whole.
    pub(crate) fn take_whole(&mut self) -> Option<(WholePass, Vec<WriteReply>)> {
        self.gathered.take_whole().map(|pass| (pass, std::mem::take(&mut self.replies)))
    }

    /// Forgets the pass that is not whole. Returns it, to drop it once the entrance is free: that runs code of its batches' owners.
    pub(crate) fn forget(&mut self) -> (Vec<Batch>, Vec<WriteReply>) {
        (self.gathered.take_back(), std::mem::take(&mut self.replies))
    }

    /// Hands over a pass. Fails only if the recorder's thread has ended.
    pub(crate) fn hand_over(&self, pass: WholePass, room: PassRoom) -> Result<WriteHandle, LaneMessage> {
        let (reply, handle) = WriteHandle::pending();
        self.send(LaneMessage::Pass(pass, vec![reply], room)).map(|()| handle)
    }

    /// Sends a message to the recorder's thread. Returns it if the thread has ended.
    pub(crate) fn send(&self, message: LaneMessage) -> Result<(), LaneMessage> {
        match &self.sender {
            Some(sender) => sender.send(message).map_err(|unsent| unsent.into_inner()),
            None => Err(message),
        }
    }
}
