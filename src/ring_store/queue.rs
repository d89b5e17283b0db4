//! The messages that go through the queue from the producers to the writer.

use crate::rows::batch::Batch;
use crate::rows::pass::WholePass;
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
