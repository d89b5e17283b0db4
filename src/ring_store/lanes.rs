//! The lanes as the writer sees them: the passes that it has taken from the queue but not dealt yet, and the order in which it deals.
//! A resumed store first deals in the order in which the saved store did.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ring_store::builder::Merge;
use crate::ring_store::queue::{Answer, Queued};
use crate::ring_store::snapshot::journal::Segment;
use crate::rows::batch::Batch;

/// The rows that are dealt from a lane before the next lane has its turn.
const TURN: usize = 64;

/// Batches that are finished, and callers to answer once these batches have been dropped.
#[derive(Default)]
pub(crate) struct Finished {
    pub(crate) batches: Vec<Batch>,
    pub(crate) answers: VecDeque<Answer>,
}

impl Finished {
    pub(crate) fn pass(&mut self, queued: Queued) {
        self.batches.extend(queued.pass.into_batches());
        self.answers.extend(queued.answer);
    }
}

/// All lanes, and the order in which their rows are dealt.
pub(crate) struct Lanes {
    lanes: BTreeMap<u64, Lane>,
    order: Order,
    /// The lanes that take no more rows.
    ending: BTreeSet<u64>,
}

/// The passes of a lane.
#[derive(Default)]
pub(crate) struct Lane {
    passes: VecDeque<Queued>,
    /// The rows that are to be dealt.
    rows: usize,
}

/// The order in which rows are dealt.
enum Order {
    /// In the order in which the rows came: each entry is a lane and a number of rows.
    Arrival(VecDeque<(u64, usize)>),
    /// In turns: the lane whose turn it is, and the rows left of its turn.
    RoundRobin { current: u64, turn: usize },
}

impl Order {
    fn new(merge: Merge) -> Self {
        match merge {
            Merge::Arrival => Order::Arrival(VecDeque::new()),
            Merge::RoundRobin => Order::RoundRobin { current: 0, turn: TURN },
        }
    }
}

impl Lane {
    /// The pass whose rows come next.
    pub(crate) fn front(&self) -> Option<&Queued> {
        self.passes.front()
    }

    fn advance(&mut self, rows: usize, finished: &mut Finished) {
        self.rows -= rows;
        let Some(front) = self.passes.front_mut() else { return };
        front.taken += rows;
        if front.left() == 0
            && let Some(front) = self.passes.pop_front()
        {
            finished.pass(front);
        }
    }
}

impl Lanes {
    pub(crate) fn new(merge: Merge) -> Self {
        Lanes { lanes: BTreeMap::new(), order: Order::new(merge), ending: BTreeSet::new() }
    }

    /// Lets the lane in `turn` go on, if lanes take turns.
    pub(crate) fn resume_turn(&mut self, resumed: Option<(u64, usize)>) {
        if let (Order::RoundRobin { current, turn }, Some(resumed)) = (&mut self.order, resumed) {
            (*current, *turn) = resumed;
        }
    }

    /// The lane whose turn it is, and the rows left of its turn, if lanes take turns.
    pub(crate) fn turn(&self) -> Option<(u64, usize)> {
        match &self.order {
            Order::RoundRobin { current, turn } => Some((*current, *turn)),
            Order::Arrival(_) => None,
        }
    }

    pub(crate) fn open(&mut self, id: u64) {
        self.lanes.entry(id).or_default();
    }

    /// Takes a pass from the queue.
    pub(crate) fn push(&mut self, queued: Queued, finished: &mut Finished) {
        let (id, rows) = (queued.lane, queued.left());
        if rows == 0 {
            finished.pass(queued);
            return;
        }
        let lane = self.lanes.entry(id).or_default();
        lane.rows += rows;
        lane.passes.push_back(queued);
        if let Order::Arrival(order) = &mut self.order {
            match order.back_mut() {
                Some((last, before)) if *last == id => *before += rows,
                _ => order.push_back((id, rows)),
            }
        }
    }

    /// Notes that a lane takes no more rows.
    pub(crate) fn end(&mut self, id: u64) {
        if self.lanes.contains_key(&id) {
            self.ending.insert(id);
        }
    }

    /// Notes that no lane takes more rows.
    pub(crate) fn end_all(&mut self) {
        self.ending.extend(self.lanes.keys());
    }

    /// Whether a lane has ended, and all its rows have been dealt.
    pub(crate) fn is_spent(&self, id: u64) -> bool {
        self.lanes.get(&id).is_none_or(|lane| lane.rows == 0 && self.ending.contains(&id))
    }

    /// Removes the lanes that have ended and whose rows have all been dealt. Returns them in the order of their numbers.
    pub(crate) fn remove_spent(&mut self) -> Vec<u64> {
        let spent: Vec<u64> = self.ending.iter().copied().filter(|&id| self.is_spent(id)).collect();
        for id in &spent {
            self.ending.remove(id);
            self.lanes.remove(id);
        }
        spent
    }

    /// Whether every lane has ended and has been removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// The lane to deal from, and the most rows to deal of its first pass. `None` if no rows can be dealt.
    pub(crate) fn next(&self) -> Option<(u64, usize)> {
        let (id, rows) = match &self.order {
            Order::Arrival(order) => *order.front()?,
            Order::RoundRobin { current, turn } => self.next_turn(*current, *turn),
        };
        self.limit(id, rows)
    }

    /// As [`next`](Self::next), for a lane that is chosen: at most `rows` rows.
    pub(crate) fn limit(&self, id: u64, rows: usize) -> Option<(u64, usize)> {
        let front = self.lanes.get(&id)?.front()?;
        Some((id, rows.min(front.left())))
    }

    /// The pass that a lane's next rows are in.
    pub(crate) fn front(&self, id: u64) -> Option<&Queued> {
        self.lanes.get(&id)?.front()
    }

    /// Passes the turn to the next lane if the current lane has had its turn or has ended.
    pub(crate) fn pass_turn(&mut self) {
        if let Order::RoundRobin { current, turn } = self.order {
            let (current, turn) = self.next_turn(current, turn);
            self.order = Order::RoundRobin { current, turn };
        }
    }

    /// The lane whose turn it is, and the rows left of its turn.
    fn next_turn(&self, mut current: u64, mut turn: usize) -> (u64, usize) {
        for _ in 0..=self.lanes.len() {
            if turn > 0 && !self.is_spent(current) {
                break;
            }
            let after = self.lanes.range(current + 1..).next();
            let Some((&next, _)) = after.or_else(|| self.lanes.first_key_value()) else { break };
            (current, turn) = (next, TURN);
        }
        (current, turn)
    }

    /// Counts rows of the next lane as dealt: at most as many as [`next`](Self::next) gave. The turn must have been passed before.
    pub(crate) fn dealt(&mut self, dealt: usize, finished: &mut Finished) {
        let id = match &mut self.order {
            Order::Arrival(order) => {
                let Some((id, rows)) = order.front_mut() else { return };
                let id = *id;
                *rows -= dealt;
                if *rows == 0 {
                    order.pop_front();
                }
                id
            }
            Order::RoundRobin { current, turn } => {
                *turn -= dealt;
                *current
            }
        };
        self.dealt_of(id, dealt, finished);
    }

    /// Counts rows of a lane as dealt, out of the usual order.
    pub(crate) fn dealt_of(&mut self, id: u64, dealt: usize, finished: &mut Finished) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.advance(dealt, finished);
        }
    }

    /// Starts the usual order with the rows that are there, lane by lane.
    pub(crate) fn start_order(&mut self) {
        if let Order::Arrival(order) = &mut self.order {
            *order = self.lanes.iter().map(|(&id, lane)| (id, lane.rows)).filter(|&(_, rows)| rows > 0).collect();
        }
    }

    /// Takes out all passes. Turns start again.
    pub(crate) fn clear(&mut self, merge: Merge) -> impl Iterator<Item = Queued> {
        self.order = Order::new(merge);
        self.lanes.values_mut().flat_map(|lane| {
            lane.rows = 0;
            lane.passes.drain(..)
        })
    }
}

/// What is to be dealt again, oldest first. Has at least one segment.
pub(crate) struct DealAgain(VecDeque<Segment>);

impl DealAgain {
    /// `None` if nothing is to be dealt again.
    pub(crate) fn new(segments: VecDeque<Segment>) -> Option<Self> {
        (!segments.is_empty()).then_some(DealAgain(segments))
    }

    /// The lane to deal from, and the most rows to deal. `None` if these rows have not come yet.
    pub(crate) fn next(&self, lanes: &Lanes) -> Option<(u64, usize)> {
        let Segment { lane, rows, .. } = self.0.front()?;
        lanes.limit(*lane, *rows as usize)
    }

    /// Counts rows of the next lane as dealt. Returns whether nothing more is to be dealt again.
    pub(crate) fn dealt(&mut self, dealt: usize, lanes: &mut Lanes, finished: &mut Finished) -> bool {
        let Some(next) = self.0.front_mut() else { return true };
        lanes.dealt_of(next.lane, dealt, finished);
        next.first_row += dealt as u64;
        next.rows -= dealt as u64;
        if next.rows == 0 {
            self.0.pop_front();
        }
        self.0.is_empty()
    }

    /// The rows that must be dealt next, if their lane has ended without these rows.
    pub(crate) fn lacks(&self, lanes: &Lanes) -> Option<Segment> {
        self.0.front().filter(|next| lanes.is_spent(next.lane)).copied()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::rows::pass::WholePass;

    fn queued(lane: u64, rows: usize) -> Queued {
        let pass = WholePass::joined(std::iter::once(Array2::<f32>::zeros((rows, 1)).into()));
        Queued { lane, pass, taken: 0, joined_by: None, answer: None }
    }

    #[test]
    fn lanes_that_end_together_are_removed_in_the_order_of_their_numbers() {
        for merge in [Merge::Arrival, Merge::RoundRobin] {
            let (mut lanes, mut finished) = (Lanes::new(merge), Finished::default());
            for lane in [2, 1] {
                lanes.open(lane);
                lanes.push(queued(lane, 2), &mut finished);
                lanes.end(lane);
                assert!(lanes.remove_spent().is_empty());
            }
            lanes.pass_turn();
            while let Some((_, rows)) = lanes.next() {
                lanes.dealt(rows, &mut finished);
                lanes.pass_turn();
            }
            assert_eq!(lanes.remove_spent(), [1, 2], "{merge:?}");
            assert!(lanes.is_empty() && finished.batches.len() == 2);
        }
    }

    #[test]
    fn lanes_take_turns_of_64_rows() {
        let (mut lanes, mut finished) = (Lanes::new(Merge::RoundRobin), Finished::default());
        for lane in [0, 3] {
            lanes.push(queued(lane, 100), &mut finished);
        }
        let mut turns = Vec::new();
        loop {
            lanes.pass_turn();
            let Some((lane, rows)) = lanes.next() else { break };
            lanes.dealt(rows, &mut finished);
            turns.push((lane, rows));
        }
        // The turn of lane 0 is not over: it waits for more rows.
        assert_eq!(turns, [(0, 64), (3, 64), (0, 36)]);
        lanes.end(0);
        lanes.pass_turn();
        assert_eq!(lanes.next(), Some((3, 36)));
    }
}
