//! The entrance of a lane: joins components that come one by one to whole passes.
//!
//! A row is whole once it has come of every component. Until then it waits here, outside the queue and its bound. A pass that comes as
//! a whole goes straight through.

use std::collections::VecDeque;

use crate::rows::batch::Batch;
use crate::rows::pass::WholePass;

/// What has come in on a lane.
#[derive(Debug)]
pub(crate) struct Entrance {
    /// The rows before this one have come of every component.
    even: u64,
    /// The row after the last one that has come of any component.
    most: u64,
    /// What has come of each component. Empty until a component comes by itself.
    columns: Vec<Column>,
    /// How many components have no row beyond `even`.
    lacking: usize,
}

#[derive(Debug)]
struct Column {
    /// The row after the last one that came.
    end: u64,
    /// The rows that wait for other components, oldest first.
    waiting: VecDeque<Batch>,
}

/// What became of a batch that came in.
#[derive(Debug, Default)]
pub(crate) struct Arrival {
    /// The passes that the batch made whole, in order.
    pub(crate) joined: Vec<WholePass>,
    /// The rows of each component in these passes.
    pub(crate) joined_rows: u64,
    /// The rows of the batch that are not needed.
    pub(crate) skipped: Option<Batch>,
}

impl Entrance {
    /// For a lane whose first row is `first`.
    pub(crate) fn new(first: u64) -> Self {
        Entrance { even: first, most: first, columns: Vec::new(), lacking: 0 }
    }

    /// The rows before this one have come of every component.
    pub(crate) fn even(&self) -> u64 {
        self.even
    }

    /// The row after the last one that has come of any component.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// The row after the last one that has come of a component.
    pub(crate) fn end_of(&self, component: usize) -> u64 {
        self.columns.get(component).map_or(self.even, |column| column.end)
    }

    /// Whether all components have come up to the same row.
    pub(crate) fn is_even(&self) -> bool {
        self.most == self.even
    }

    /// The component with the most rows, and one with the fewest.
    pub(crate) fn extremes(&self) -> (usize, usize) {
        let components = 0..self.columns.len();
        let most = components.clone().max_by_key(|&component| self.columns[component].end).unwrap_or(0);
        let fewest = components.min_by_key(|&component| self.columns[component].end).unwrap_or(0);
        (most, fewest)
    }

    /// Whether another component has come at least `rows` rows beyond this one.
    pub(crate) fn has_counterparts(&self, component: usize, rows: usize) -> bool {
        self.most - self.end_of(component) >= rows as u64
    }

    /// Notes a pass that comes as a whole. The entrance must be even.
    pub(crate) fn pass(&mut self, rows: u64) {
        self.even += rows;
        self.most = self.even;
        self.columns.iter_mut().for_each(|column| column.end = self.even);
    }

    /// Takes a batch of one of `components` components. Rows before row `needed` are not needed: they do not wait.
    pub(crate) fn put(&mut self, component: usize, mut batch: Batch, needed: u64, components: usize) -> Arrival {
        if self.columns.is_empty() {
            let column = || Column { end: self.even, waiting: VecDeque::new() };
            self.columns = std::iter::repeat_with(column).take(components).collect();
            self.lacking = components;
        }
        let rows = batch.rows() as u64;
        let column = &mut self.columns[component];
        let skipped = needed.saturating_sub(column.end).min(rows);
        if rows > 0 && column.end == self.even {
            self.lacking -= 1;
        }
        column.end += rows;
        self.most = self.most.max(column.end);
        let mut arrival = Arrival::default();
        if skipped > 0 {
            let (front, rest) = batch.split_at(skipped as usize);
            (arrival.skipped, batch) = (Some(front), rest);
        }
        if batch.rows() > 0 {
            column.waiting.push_back(batch);
        }
        if self.lacking == 0 {
            self.join(needed, &mut arrival);
        }
        arrival
    }

    /// Makes passes of the rows that have come of every component.
    fn join(&mut self, needed: u64, arrival: &mut Arrival) {
        let before = self.even.max(needed);
        self.even = self.columns.iter().map(|column| column.end).min().unwrap_or(self.even);
        self.lacking = self.columns.iter().filter(|column| column.end == self.even).count();
        arrival.joined_rows = self.even.saturating_sub(before);
        let mut left = arrival.joined_rows as usize;
        while left > 0 {
            let fronts = self.columns.iter().filter_map(|column| column.waiting.front());
            let rows = fronts.map(Batch::rows).min().unwrap_or(left).min(left);
            arrival.joined.push(WholePass::joined(self.columns.iter_mut().filter_map(|column| column.take(rows))));
            left -= rows;
        }
    }

    /// Takes out the rows that wait for other components.
    pub(crate) fn take_waiting(&mut self) -> impl Iterator<Item = (usize, Batch)> {
        let columns = self.columns.iter_mut().enumerate();
        columns.flat_map(|(component, column)| column.waiting.drain(..).map(move |batch| (component, batch)))
    }
}

impl Column {
    /// Takes the first rows of the first batch.
    fn take(&mut self, rows: usize) -> Option<Batch> {
        let batch = self.waiting.pop_front()?;
        if batch.rows() == rows {
            return Some(batch);
        }
        let (front, rest) = batch.split_at(rows);
        self.waiting.push_front(rest);
        Some(front)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use proptest::prelude::*;

    use super::*;

    /// Rows of one feature, which is the number of the row.
    fn rows(from: u64, to: u64) -> Batch {
        Array2::from_shape_fn(((to - from) as usize, 1), |(row, _)| (from + row as u64) as f32).into()
    }

    fn values(batch: &Batch) -> Vec<u64> {
        batch.to_f32().iter().map(|&value| value as u64).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 300 }, ..ProptestConfig::default() })]

        /// Whatever the sizes of the batches, each needed row of each component leaves once, in order, beside its counterparts.
        #[test]
        fn rows_leave_in_order_beside_their_counterparts(
            batches in proptest::collection::vec((0_usize..3, 0_u64..9), 0..60),
            first in 0_u64..5,
            skip in 0_u64..20,
        ) {
            let mut entrance = Entrance::new(first);
            let needed = first + skip;
            let mut came = [first; 3];
            let (mut whole, mut skipped) = (needed, [0; 3]);
            for (component, n) in batches {
                let arrival = entrance.put(component, rows(came[component], came[component] + n), needed, 3);
                came[component] += n;
                skipped[component] += arrival.skipped.map_or(0, |batch| batch.rows());
                let before = whole;
                for pass in arrival.joined {
                    let rows = pass.rows() as u64;
                    for batch in pass.into_batches() {
                        prop_assert_eq!(values(&batch), (whole..whole + rows).collect::<Vec<_>>());
                    }
                    whole += rows;
                }
                prop_assert_eq!(whole - before, arrival.joined_rows);
                let even = came.into_iter().min().unwrap();
                prop_assert_eq!((entrance.even(), entrance.most()), (even, came.into_iter().max().unwrap()));
                prop_assert_eq!(whole, even.max(needed));
                prop_assert_eq!(entrance.is_even(), came.iter().all(|&row| row == even));
                prop_assert_eq!(entrance.end_of(component), came[component]);
            }
            let mut waiting = [0; 3];
            for (component, batch) in entrance.take_waiting() {
                waiting[component] += batch.rows() as u64;
            }
            for component in 0..3 {
                prop_assert_eq!(skipped[component] as u64, came[component].min(needed) - first);
                prop_assert_eq!(waiting[component], came[component].max(needed) - whole);
            }
        }
    }
}
