//! The counts of rows: where they are.

use crate::ring_store::stats::Dropped;
use crate::rows::values::ValueCounts;

/// The counts of rows, under the store's mutex.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) components: Vec<ComponentLedger>,
    /// The rows of each component in open frames.
    pub(crate) open_rows: usize,
    /// The rows that the saved store held, and that are not ready yet in this store. `None` unless a resumed store is dealing rows
    /// again. These rows count as accepted once they are ready.
    pub(crate) to_replay: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ComponentLedger {
    pub(crate) accepted: u64,
    /// Accepted rows that wait for rows of another component, or came before them and are queued beside them.
    pub(crate) set_aside: u64,
    /// The rows among these that are queued.
    pub(crate) queued_aside: u64,
    pub(crate) dropped: Dropped,
    /// Rows that were sent again to a resumed store, although they had been dealt before the snapshot.
    pub(crate) resent: u64,
    /// Dealt rows whose values are not finite or overflowed.
    pub(crate) values: ValueCounts,
}

impl ComponentLedger {
    /// Counts queued rows as accepted, or takes them out of what was set aside, because they leave the queue.
    fn leave_queue(&mut self, rows: u64, was_aside: bool) {
        if was_aside {
            self.set_aside -= rows;
            self.queued_aside -= rows;
        } else {
            self.accepted += rows;
        }
    }
}

impl Ledger {
    pub(crate) fn new(components: usize) -> Self {
        Ledger { components: vec![ComponentLedger::default(); components], open_rows: 0, to_replay: None }
    }

    /// Counts queued rows of a pass as dealt. `joined_by` is the component that made the pass whole: the others were set aside.
    pub(crate) fn deal(&mut self, rows: u64, joined_by: Option<usize>, again: bool) {
        for (number, component) in self.components.iter_mut().enumerate() {
            component.leave_queue(rows, joined_by.is_some_and(|by| by != number));
            if again {
                // These rows count as accepted once they are ready, or once all such rows have been dealt.
                component.resent += rows;
                component.accepted -= rows;
            }
        }
        if self.to_replay.is_none() {
            self.open_rows += rows as usize;
        }
    }

    /// Counts queued rows of a pass as discarded, because the store was emptied.
    pub(crate) fn discard_queued(&mut self, rows: u64, joined_by: Option<usize>) {
        for (number, component) in self.components.iter_mut().enumerate() {
            component.leave_queue(rows, joined_by.is_some_and(|by| by != number));
            component.dropped.emptied += rows;
        }
    }

    /// Counts unserved rows as ready.
    pub(crate) fn make_ready(&mut self, rows: usize) {
        match &mut self.to_replay {
            None => self.open_rows -= rows,
            Some(to_replay) => {
                *to_replay = to_replay.saturating_sub(rows);
                self.accept(rows);
            }
        }
    }

    /// Counts the rows to replay as open, because nothing more is dealt again. Returns their number. `None` if the store was
    /// not dealing rows again.
    pub(crate) fn end_replay(&mut self) -> Option<usize> {
        let to_replay = self.to_replay.take()?;
        self.open_rows = to_replay;
        self.accept(to_replay);
        Some(to_replay)
    }

    fn accept(&mut self, rows: usize) {
        for component in &mut self.components {
            component.accepted += rows as u64;
        }
    }

    /// The rows that the store has taken of the component with the most rows.
    pub(crate) fn accepted(&self) -> u64 {
        self.components.iter().map(|component| component.accepted).max().unwrap_or(0)
    }

    /// Counts rows of every component as dropped. `reason` selects the reason.
    pub(crate) fn drop_rows(&mut self, rows: usize, reason: fn(&mut Dropped) -> &mut u64) {
        for component in &mut self.components {
            *reason(&mut component.dropped) += rows as u64;
        }
    }

    /// Counts rows of every component as dropped from the open frames. `reason` selects the reason.
    pub(crate) fn drop_open(&mut self, rows: usize, reason: fn(&mut Dropped) -> &mut u64) {
        // If some of these rows were served before the store was resumed, `open_rows` is smaller than `rows`.
        let rows = rows.min(self.open_rows);
        self.open_rows -= rows;
        self.drop_rows(rows, reason);
    }

    /// Counts a row range that waits for other components as dropped.
    pub(crate) fn drop_aside(&mut self, component: usize, rows: u64, reason: fn(&mut Dropped) -> &mut u64) {
        let component = &mut self.components[component];
        component.set_aside -= rows;
        *reason(&mut component.dropped) += rows;
    }
}
