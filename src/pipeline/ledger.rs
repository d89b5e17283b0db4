//! Where the rows are, as the writer counts them.

use crate::pipeline::stats::Dropped;

/// The writer's count of rows. It counts on its own copy, and shares it once per plan of rows.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) components: Vec<ComponentLedger>,
    /// Rows, of every component, in open frames.
    pub(crate) open_rows: usize,
    /// While a resumed store deals again what its snapshot's store had dealt: the rows that it held, and that are not ready yet.
    /// They count as accepted once they are.
    pub(crate) owed: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ComponentLedger {
    pub(crate) accepted: u64,
    /// Accepted rows that wait for another component.
    pub(crate) set_aside: u64,
    pub(crate) dropped: Dropped,
    /// Rows that a resumed store was sent although they had been dealt before.
    pub(crate) resent: u64,
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

    /// Counts what is owed as open: nothing more is dealt again. Returns how many rows were owed, if any could be.
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

    /// Rows of any component that the store has taken.
    pub(crate) fn accepted(&self) -> u64 {
        self.components.iter().map(|component| component.accepted).max().unwrap_or(0)
    }

    /// Makes this an exact copy, in the memory there is.
    pub(crate) fn update(&mut self, newer: &Ledger) {
        self.components.copy_from_slice(&newer.components);
        (self.open_rows, self.owed) = (newer.open_rows, newer.owed);
    }

    /// Counts rows of every component that are dropped for the reason that `reason` selects.
    pub(crate) fn drop_rows(&mut self, rows: usize, reason: fn(&mut Dropped) -> &mut u64) {
        for component in &mut self.components {
            *reason(&mut component.dropped) += rows as u64;
        }
    }

    /// Counts rows of every component that leave the open frames unserved.
    pub(crate) fn drop_open(&mut self, rows: usize, reason: fn(&mut Dropped) -> &mut u64) {
        // Fewer where rows left at the end have been served before the store was resumed.
        let rows = rows.min(self.open_rows);
        self.open_rows -= rows;
        self.drop_rows(rows, reason);
    }
}
