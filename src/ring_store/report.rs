//! What the writer has done since it last told the state.

use crate::rows::values::ValueCounts;

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
