//! Where the rows are, as the writer counts them.

use crate::pipeline::stats::Dropped;

/// The writer's count of rows. It counts on its own copy, and shares it once per plan of rows.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) components: Vec<ComponentLedger>,
    /// Rows, of every component, in open frames.
    pub(crate) open_rows: usize,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ComponentLedger {
    pub(crate) accepted: u64,
    /// Accepted rows that wait for another component.
    pub(crate) set_aside: u64,
    pub(crate) dropped: Dropped,
}

impl Ledger {
    pub(crate) fn new(components: usize) -> Self {
        Ledger { components: vec![ComponentLedger::default(); components], open_rows: 0 }
    }

    /// Rows of any component that the store has taken.
    pub(crate) fn accepted(&self) -> u64 {
        self.components.iter().map(|component| component.accepted).max().unwrap_or(0)
    }

    /// Makes this an exact copy, in the memory there is.
    pub(crate) fn update(&mut self, newer: &Ledger) {
        self.components.copy_from_slice(&newer.components);
        self.open_rows = newer.open_rows;
    }

    /// Counts rows of every component that are dropped for the reason that `reason` selects.
    pub(crate) fn drop_rows(&mut self, rows: usize, reason: fn(&mut Dropped) -> &mut u64) {
        for component in &mut self.components {
            *reason(&mut component.dropped) += rows as u64;
        }
    }

    /// Counts rows of every component that leave the open frames unserved.
    pub(crate) fn drop_open(&mut self, rows: usize, reason: fn(&mut Dropped) -> &mut u64) {
        self.open_rows -= rows;
        self.drop_rows(rows, reason);
    }
}
