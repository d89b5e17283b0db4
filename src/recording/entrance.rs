//! Takes passes into a recorder, as a whole or component by component.

use crossbeam_channel::Sender;

use crate::recording::lane_writer::Message;
use crate::recording::room::Place;
use crate::recording::sealer::Progress;
use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::layout::{ComponentKey, Layout};
use crate::waiting::handle::{WriteHandle, WriteReply};

/// Takes passes in.
pub(crate) struct Entrance {
    pub(crate) sender: Option<Sender<Message>>,
    /// The pass that comes component by component.
    gathered: Vec<Option<(Batch, WriteReply)>>,
}

impl Entrance {
    pub(crate) fn new(sender: Sender<Message>, components: usize) -> Self {
        Entrance { sender: Some(sender), gathered: (0..components).map(|_| None).collect() }
    }

    /// Checks that a whole pass can come in: there was no error, the recorder is open, and no other pass is half gathered.
    pub(crate) fn check(&self, layout: &Layout, progress: &Progress) -> Result<(), WriteError> {
        self.check_open(progress)?;
        if self.gathered.iter().any(Option::is_some) {
            let missing = self.gathered.iter().position(Option::is_none).unwrap_or(0);
            return Err(WriteError::PassLacks { missing: layout.name(missing) });
        }
        Ok(())
    }

    /// Checks that the recorder takes rows. The first error of the disk comes before the end.
    pub(crate) fn check_open(&self, progress: &Progress) -> Result<(), WriteError> {
        progress.outcome()?;
        if self.sender.is_some() { Ok(()) } else { Err(ClosedBy::Recorder.into()) }
    }

    /// Adds a batch to the pass that comes component by component. Hands the pass over in its place when it is whole.
    pub(crate) fn gather(
        &mut self,
        layout: &Layout,
        batch: Batch,
        component: usize,
        place: Place,
    ) -> Result<WriteHandle, Refused> {
        if let Err(error) = self.check_fits(layout, &batch, component) {
            return Err(Refused { error, batch });
        }
        let (reply, handle) = WriteHandle::pending();
        self.gathered[component] = Some((batch, reply));
        if self.gathered.iter().all(Option::is_some) {
            let (batches, replies) = self.gathered.iter_mut().filter_map(Option::take).unzip();
            // If the message comes back, its replies are dropped and their handles resolve as closed.
            let _ = self.send(Message::Pass(batches, replies, place));
        }
        Ok(handle)
    }

    /// Forgets the pass that is not whole. Returns its batches, to drop them once the entrance is free: that runs code of their owners.
    pub(crate) fn forget(&mut self) -> Vec<(Batch, WriteReply)> {
        self.gathered.iter_mut().filter_map(Option::take).collect()
    }

    fn check_fits(&self, layout: &Layout, batch: &Batch, component: usize) -> Result<(), WriteError> {
        if self.gathered[component].is_some() {
            return Err(WriteError::PassDoubles { doubled: layout.name(component) });
        }
        let others = self.gathered.iter().enumerate();
        let first = others.filter_map(|(number, other)| Some((number, other.as_ref()?.0.rows()))).next();
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

    /// Hands over a pass that was checked. Refuses it only if the recorder's thread has ended.
    pub(crate) fn hand_over(&self, pass: Vec<(usize, Batch)>, place: Place) -> Result<WriteHandle, RefusedPass> {
        let order: Vec<usize> = pass.iter().map(|(component, _)| *component).collect();
        let mut pass = pass;
        pass.sort_by_key(|(component, _)| *component);
        let (reply, handle) = WriteHandle::pending();
        match self.send(Message::Pass(pass.into_iter().map(|(_, batch)| batch).collect(), vec![reply], place)) {
            Err(Message::Pass(batches, ..)) => {
                let mut batches: Vec<Option<Batch>> = batches.into_iter().map(Some).collect();
                let batches = order.into_iter().filter_map(|component| batches[component].take()).collect();
                Err(RefusedPass { error: ClosedBy::Recorder.into(), batches })
            }
            _ => Ok(handle),
        }
    }

    pub(crate) fn send(&self, message: Message) -> Result<(), Message> {
        match &self.sender {
            Some(sender) => sender.send(message).map_err(|unsent| unsent.into_inner()),
            None => Err(message),
        }
    }
}

/// Checks a pass. Returns its batches in the given order, each with the number of its component.
pub(crate) fn check_pass<K: ComponentKey, B: Into<Batch>>(
    layout: &Layout,
    pass: impl IntoIterator<Item = (K, B)>,
) -> Result<Vec<(usize, Batch)>, RefusedPass> {
    let (keys, batches): (Vec<K>, Vec<Batch>) = pass.into_iter().map(|(key, batch)| (key, batch.into())).unzip();
    match order(layout, &keys, &batches) {
        Ok(order) => Ok(order.into_iter().zip(batches).collect()),
        Err(error) => Err(RefusedPass { error, batches }),
    }
}

pub(crate) fn refused(error: WriteError, pass: Vec<(usize, Batch)>) -> RefusedPass {
    RefusedPass { error, batches: pass.into_iter().map(|(_, batch)| batch).collect() }
}

fn order<K: ComponentKey>(layout: &Layout, keys: &[K], batches: &[Batch]) -> Result<Vec<usize>, WriteError> {
    let mut order: Vec<usize> = Vec::with_capacity(keys.len());
    for (&key, batch) in keys.iter().zip(batches) {
        let component = layout.find(key)?;
        layout.check(batch, component)?;
        if order.contains(&component) {
            return Err(WriteError::PassDoubles { doubled: layout.name(component) });
        }
        if batch.rows() != batches[0].rows() {
            let first = layout.name(order.first().copied().unwrap_or(component));
            let (first_rows, component) = (batches[0].rows(), layout.name(component));
            return Err(WriteError::PassRows { first, first_rows, component, rows: batch.rows() });
        }
        order.push(component);
    }
    match (0..layout.n_components()).find(|component| !order.contains(component)) {
        Some(missing) => Err(WriteError::PassLacks { missing: layout.name(missing) }),
        None => Ok(order),
    }
}
