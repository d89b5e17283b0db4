//! The writer's counts: where the rows are.

use crate::ring_store::stats::Dropped;
use crate::rows::values::ValueCounts;

/// The counts of rows. The writer counts on a copy of its own, and shares the copy once per plan of rows.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) components: Vec<ComponentLedger>,
    /// The rows of each component in open frames.
    pub(crate) open_rows: usize,
    /// The rows that the saved store held, and that are not ready yet in this store. `None` unless a resumed store is dealing rows
    /// again. These rows count as accepted once they are ready.
    pub(crate) owed: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ComponentLedger {
    pub(crate) accepted: u64,
    /// Accepted rows that wait for rows of another component.
    pub(crate) set_aside: u64,
    pub(crate) dropped: Dropped,
    /// Rows that were sent again to a resumed store, although they had been dealt before the snapshot.
    pub(crate) resent: u64,
    /// Dealt rows whose values are not finite or overflowed.
    pub(crate) values: ValueCounts,
}

impl Ledger {
    pub(crate) fn new(components: usize) -> Self {
        Ledger { components: vec![ComponentLedger::default(); components], open_rows: 0, owed: None }
    }

    /// Counts rows as dealt to the open frames.
    pub(crate) fn deal(&mut self, rows: usize) {
        if self.owed.is_none() {
            self.open_rows += rows;
        }
    }

    /// Counts unserved rows as ready.
    pub(crate) fn make_ready(&mut self, rows: usize) {
        match &mut self.owed {
            None => self.open_rows -= rows,
            Some(owed) => {
                *owed = owed.saturating_sub(rows);
                self.accept(rows);
            }
        }
    }

    /// Counts the owed rows as open, because nothing more is dealt again. Returns the number of owed rows. `None` if the store was
    /// not dealing rows again.
    pub(crate) fn settle_debt(&mut self) -> Option<usize> {
        let owed = self.owed.take()?;
        self.open_rows = owed;
        self.accept(owed);
        Some(owed)
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

    /// Makes this ledger an exact copy of `newer`, without allocating.
    pub(crate) fn update(&mut self, newer: &Ledger) {
        self.components.copy_from_slice(&newer.components);
        (self.open_rows, self.owed) = (newer.open_rows, newer.owed);
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
}
