//! What the writer gets and gives: the messages that come through the queue from the producers, and the report of what it has dealt.

use crate::rows::batch::Batch;
use crate::rows::pass::WholePass;
use crate::rows::values::ValueCounts;
use crate::waiting::handle::{WriteReply, Written};

/// A message to the writer. The writer receives messages in order.
#[derive(Debug)]
pub(crate) enum Message {
    /// A lane has been opened.
    OpenLane(u64),
    /// A pass has been handed over.
    Pass(Queued),
    /// Batches that are not dealt: to be dropped, and their caller to be answered.
    Drop(Vec<Batch>, Option<Answer>),
    /// A lane takes no more rows.
    EndLane(u64),
    /// The shared state has changed, so the writer must look at it: a request, room for a ready frame, a free frame, or an end.
    Look,
}

/// A pass on its way to the frames.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) lane: u64,
    pub(crate) pass: WholePass,
    /// The first rows of the pass that are not to be dealt, or have been dealt.
    pub(crate) taken: usize,
    /// The component that made the pass whole, if its components came one by one. The rows of the others count as accepted already.
    pub(crate) joined_by: Option<usize>,
    pub(crate) answer: Option<Answer>,
}

/// The answer that a caller gets once the writer has dropped the caller's batches.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: WriteReply,
    pub(crate) written: Written,
}

impl Queued {
    /// The rows that are to be dealt.
    pub(crate) fn left(&self) -> usize {
        self.pass.rows() - self.taken
    }
}

/// What the writer has dealt.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) dealt: Vec<Dealt>,
    /// The dealt rows of each component with values that are not finite or overflowed.
    pub(crate) values: Vec<ValueCounts>,
    /// Whether nothing more is to be dealt again.
    pub(crate) has_dealt_again: bool,
}

/// The next rows of a lane, which were dealt.
#[derive(Debug)]
pub(crate) struct Dealt {
    pub(crate) lane: u64,
    pub(crate) rows: u64,
    /// The component that made their passes whole, if the components came one by one.
    pub(crate) joined_by: Option<usize>,
    /// Whether the saved store had dealt them.
    pub(crate) again: bool,
}

impl Report {
    pub(crate) fn new(components: usize) -> Self {
        Report { values: vec![ValueCounts::default(); components], ..Report::default() }
    }

    /// Adds rows that were dealt.
    pub(crate) fn deal(&mut self, next: Dealt) {
        let continues =
            |last: &Dealt| (last.lane, last.joined_by, last.again) == (next.lane, next.joined_by, next.again);
        match self.dealt.last_mut() {
            Some(last) if continues(last) => last.rows += next.rows,
            _ => self.dealt.push(next),
        }
    }
}
