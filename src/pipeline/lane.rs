//! Batches that the writer has taken from the queue but not dealt yet: per lane, per component.
//!
//! A row can be dealt once all its components are there. Until then the batch waits here as it came, so the ring only
//! ever sees whole rows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::pipeline::config::Merge;
use crate::pipeline::exchange::Counts;
use crate::pipeline::handle::{Reply, Written};
use crate::pipeline::queue::{Budget, Write};
use crate::rows::batch::Batch;

/// Rows that a lane deals before the next has its turn.
const TURN: usize = 64;

/// A batch that is done with, and whom to tell.
pub(crate) type Finished = (Batch, Option<Answer>);

/// An answer that is due.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) written: Written,
    pub(crate) ticket: u64,
}

/// All lanes, and whose turn it is.
pub(crate) struct Lanes {
    lanes: BTreeMap<u64, Lane>,
    merge: Merge,
    /// The lane to deal from.
    current: u64,
    /// Rows left of its turn.
    turn: usize,
    /// Lanes on which something has changed.
    touched: Vec<u64>,
}

impl Lanes {
    pub(crate) fn new(merge: Merge) -> Self {
        Lanes { lanes: BTreeMap::new(), merge, current: 0, turn: TURN, touched: Vec::new() }
    }

    pub(crate) fn open(&mut self, id: u64, components: usize, budget: Arc<Budget>) {
        self.lanes.insert(id, Lane::new(components, budget));
    }

    pub(crate) fn lane(&mut self, id: u64) -> Option<&mut Lane> {
        self.lanes.get_mut(&id)
    }

    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.lanes.values_mut()
    }

    /// Says that something has changed on a lane.
    pub(crate) fn touch(&mut self, id: u64) {
        if self.touched.last() != Some(&id) {
            self.touched.push(id);
        }
        if self.merge == Merge::Arrival {
            // Every other lane has been dealt as far as it goes.
            self.current = id;
        }
    }

    /// Lanes to look after, each perhaps more than once, now that nothing can be dealt.
    pub(crate) fn next_touched(&mut self) -> Option<u64> {
        self.touched.pop()
    }

    /// Removes a lane, and returns it, if it has ended and all its rows have been dealt that can be.
    pub(crate) fn remove_spent(&mut self, id: u64) -> Option<Lane> {
        self.lanes.get(&id).filter(|lane| lane.spent())?;
        self.lanes.remove(&id)
    }

    /// Ends every lane.
    pub(crate) fn end_all(&mut self) {
        for (&id, lane) in &mut self.lanes {
            lane.ended = true;
            self.touched.push(id);
        }
    }

    /// The lane to deal from and how many rows at most, if any can be dealt.
    pub(crate) fn next(&mut self) -> Option<(&mut Lane, usize)> {
        let turn = match self.merge {
            Merge::Arrival => usize::MAX,
            Merge::RoundRobin => {
                self.pass_turn();
                self.turn
            }
        };
        let lane = self.lanes.get_mut(&self.current)?;
        let rows = lane.available().min(turn);
        (rows > 0).then_some((lane, rows))
    }

    /// Moves on to the next lane where the current one has had its turn, or has ended.
    fn pass_turn(&mut self) {
        for _ in 0..=self.lanes.len() {
            if self.turn > 0 && self.lanes.get(&self.current).is_some_and(|lane| !lane.spent()) {
                return;
            }
            let after = self.lanes.range(self.current + 1..).next();
            let Some((&next, _)) = after.or_else(|| self.lanes.first_key_value()) else {
                return;
            };
            (self.current, self.turn) = (next, TURN);
        }
    }

    /// Counts rows of the current turn as dealt.
    pub(crate) fn dealt(&mut self, rows: usize) {
        if self.merge == Merge::RoundRobin {
            self.turn -= rows;
            self.touch(self.current);
        }
    }
}

/// The batches of one producer.
pub(crate) struct Lane {
    columns: Vec<Column>,
    budget: Arc<Budget>,
    /// No more rows come.
    pub(crate) ended: bool,
}

/// The batches of one component of a lane.
struct Column {
    pending: VecDeque<Pending>,
    /// Rows in `pending`.
    rows: usize,
    /// Rows that ever came.
    received: u64,
    /// Rows to discard as they come, for their counterparts were discarded.
    skip: u64,
}

struct Pending {
    batch: Batch,
    /// Rows dealt or discarded.
    taken: usize,
    first_row: u64,
    ticket: u64,
    /// `None` once the rows are accepted, be it because they wait for another component.
    reply: Option<Reply>,
}

impl Pending {
    fn left(&self) -> usize {
        self.batch.rows() - self.taken
    }

    fn answer(&mut self) -> Option<Answer> {
        let written = Written { rows: self.batch.rows(), first_row: self.first_row };
        self.reply.take().map(|reply| Answer { reply, written, ticket: self.ticket })
    }

    fn finish(mut self) -> Finished {
        let answer = self.answer();
        (self.batch, answer)
    }
}

impl Lane {
    pub(crate) fn new(components: usize, budget: Arc<Budget>) -> Self {
        let column = || Column { pending: VecDeque::new(), rows: 0, received: 0, skip: 0 };
        Lane { columns: (0..components).map(|_| column()).collect(), budget, ended: false }
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whether it has ended and all its rows have been dealt that can be.
    fn spent(&self) -> bool {
        self.ended && self.available() == 0
    }

    /// Takes a batch from the queue.
    pub(crate) fn push(&mut self, write: Write, ticket: u64, counts: &mut Counts, finished: &mut Vec<Finished>) {
        let Write { component, batch, first_row, reply, .. } = write;
        let column = &mut self.columns[component];
        let rows = batch.rows();
        let skipped = column.skip.min(rows as u64) as usize;
        column.received += rows as u64;
        column.skip -= skipped as u64;
        column.rows += rows - skipped;
        self.budget.leave(component, skipped);
        counts.components[component].accepted += skipped as u64;
        counts.components[component].dropped += skipped as u64;
        let pending = Pending { batch, taken: skipped, first_row, ticket, reply: Some(reply) };
        if pending.left() == 0 {
            finished.push(pending.finish());
        } else {
            column.pending.push_back(pending);
        }
    }

    /// Rows that all components have.
    pub(crate) fn available(&self) -> usize {
        self.columns.iter().map(|column| column.rows).min().unwrap_or(0)
    }

    /// Rows that can be dealt without crossing the end of a batch.
    pub(crate) fn front_rows(&self) -> usize {
        self.columns.iter().map(|column| column.pending.front().map_or(0, Pending::left)).min().unwrap_or(0)
    }

    /// The batch that has the component's next row, and which of its rows that is. Only while `front_rows() > 0`.
    pub(crate) fn front(&self, component: usize) -> (&Batch, usize) {
        let pending = &self.columns[component].pending[0];
        (&pending.batch, pending.taken)
    }

    /// Counts `rows` rows, no more than `front_rows()`, as dealt.
    pub(crate) fn advance(&mut self, rows: usize, counts: &mut Counts, finished: &mut Vec<Finished>) {
        for (component, (column, counts)) in self.columns.iter_mut().zip(&mut counts.components).enumerate() {
            let Some(front) = column.pending.front_mut() else {
                continue;
            };
            front.taken += rows;
            column.rows -= rows;
            if front.reply.is_some() {
                counts.accepted += rows as u64;
                self.budget.leave(component, rows);
            } else {
                counts.staged -= rows as u64;
            }
            if front.left() == 0 {
                finished.extend(column.pending.pop_front().map(Pending::finish));
            }
        }
    }

    /// Accepts all batches that are left: nothing but another component's rows is missing to deal them.
    pub(crate) fn accept(&mut self, counts: &mut Counts, answers: &mut Vec<Answer>) {
        for (component, (column, counts)) in self.columns.iter_mut().zip(&mut counts.components).enumerate() {
            // The accepted ones come first.
            for pending in column.pending.iter_mut().rev().take_while(|pending| pending.reply.is_some()) {
                let rows = pending.left();
                counts.accepted += rows as u64;
                counts.staged += rows as u64;
                self.budget.leave(component, rows);
                answers.extend(pending.answer());
            }
        }
    }

    /// Discards all batches, as accepted and dropped; later rows whose counterparts went with them will be, too.
    pub(crate) fn discard(&mut self, counts: &mut Counts, finished: &mut Vec<Finished>) {
        let ahead = self.columns.iter().map(|column| column.received).max().unwrap_or(0);
        for (component, (column, counts)) in self.columns.iter_mut().zip(&mut counts.components).enumerate() {
            for pending in column.pending.drain(..) {
                let rows = pending.left();
                counts.dropped += rows as u64;
                if pending.reply.is_some() {
                    counts.accepted += rows as u64;
                    self.budget.leave(component, rows);
                } else {
                    counts.staged -= rows as u64;
                }
                finished.push(pending.finish());
            }
            column.rows = 0;
            column.skip = ahead - column.received;
        }
    }

    /// Everything that is left.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = impl Sized> {
        self.columns.iter_mut().flat_map(|column| column.pending.drain(..))
    }

    /// Forgets what was not accepted: its replies are lost.
    pub(crate) fn refuse(&mut self) {
        for (component, column) in self.columns.iter_mut().enumerate() {
            // The accepted ones come first.
            let accepted = column.pending.partition_point(|pending| pending.reply.is_none());
            for pending in column.pending.drain(accepted..) {
                column.rows -= pending.left();
                self.budget.leave(component, pending.left());
            }
        }
    }

    /// The component with the most rows left, the one with the fewest ever received, and how many rows they differ by.
    pub(crate) fn unmatched(&self) -> Option<(usize, usize, u64)> {
        let present = (0..self.columns.len()).max_by_key(|&component| self.columns[component].rows)?;
        let missing = (0..self.columns.len()).min_by_key(|&component| self.columns[component].rows)?;
        let rows = self.columns[present].rows as u64;
        (rows > 0).then_some((present, missing, rows))
    }
}
