//! Why rows are not stored: the error of every write.

use std::sync::Arc;

use crate::disk::error::DiskError;
use crate::rows::closed::{Closed, ClosedBy};
use crate::rows::element::DType;
use crate::rows::full::StoreFullError;
use crate::rows::names::{ComponentName, UnknownComponent};

/// Returned when rows are not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The batch has the wrong number of features for its component.
    #[error(
        "component {component} takes rows of {expected} features, but the batch has {got}{}",
        one_row_hint(*expected, *got, *from_vec)
    )]
    Features {
        /// The component, by number and name.
        component: ComponentName,
        /// Features of a row of the component.
        expected: usize,
        /// Features of a row of the batch.
        got: usize,
        /// Whether the batch was made from a `Vec`. A `Vec` is one row.
        from_vec: bool,
    },
    /// The element type of the batch cannot be converted to the element type of the component.
    #[error(
        "component {component} holds {expected}, and {got} rows cannot be converted to that without loss of meaning"
    )]
    Elements {
        /// The component, by number and name.
        component: ComponentName,
        /// The element type of the component.
        expected: DType,
        /// The element type of the batch.
        got: DType,
    },
    /// `append` got a batch that is not one row.
    #[error("append takes one row, but got {rows}; use extend for a batch")]
    NotOneRow {
        /// Rows of the batch.
        rows: usize,
    },
    /// The store has no such component.
    #[error(transparent)]
    Component(#[from] UnknownComponent),
    /// The store has no room for the rows.
    #[error(transparent)]
    Full(#[from] StoreFullError),
    /// The store or the lane takes no more rows.
    #[error("{}", .0.by)]
    Closed(#[source] Closed),
    /// A lane with that name is open already.
    #[error("a lane named {name:?} is open already: names are unique, so that a resumed store knows its lanes by them")]
    LaneName {
        /// The name.
        name: Arc<str>,
    },
    /// [`send_again`](crate::Producer::send_again) was called after the lane had taken rows.
    #[error("the lane has taken rows already, up to row {rows}: call send_again before the first write")]
    LaneStarted {
        /// The number of the next row of the lane.
        rows: u64,
    },
    /// The batch would bring its component too far ahead of another component.
    #[error(
        "component {ahead} is {by} rows ahead of component {missing} in this lane, and this batch would pass max_skew ({max_skew}): \
         write component {missing} too, or raise max_skew (its default is queue_rows)"
    )]
    Skew {
        /// The component of the batch.
        ahead: ComponentName,
        /// The component whose rows are missing.
        missing: ComponentName,
        /// How many rows `ahead` is ahead of `missing` without the batch.
        by: u64,
        /// How many rows a component may be ahead.
        max_skew: usize,
    },
    /// The pass lacks a component.
    #[error("the pass has no rows of component {missing}; a pass has every component of the store exactly once")]
    PassLacks {
        /// The component that is missing.
        missing: ComponentName,
    },
    /// The pass has a component twice.
    #[error("the pass has component {doubled} twice; a pass has every component of the store exactly once")]
    PassDoubles {
        /// The component that is there twice.
        doubled: ComponentName,
    },
    /// The components of the pass differ in their number of rows.
    #[error(
        "the pass has {rows} rows of component {component}, but {first_rows} of component {first}; a pass has equally many of each"
    )]
    PassRows {
        /// The first component of the pass.
        first: ComponentName,
        /// Rows of `first`.
        first_rows: usize,
        /// A component that has another number of rows.
        component: ComponentName,
        /// Rows of `component`.
        rows: usize,
    },
    /// The lane has more rows of one component than of another, so the rows of a pass would not be aligned.
    #[error(
        "component {ahead} is {by} rows ahead of component {missing} in this lane, so a whole pass would be misaligned: \
         write the missing rows of component {missing} first, or use another lane (producer())"
    )]
    Uneven {
        /// The component with the most rows.
        ahead: ComponentName,
        /// The component with the fewest rows.
        missing: ComponentName,
        /// How many rows `ahead` is ahead of `missing`.
        by: u64,
    },
    /// A lane ended before the same rows of another component came. The store dropped the rows that were there.
    ///
    /// [`RingStore::flush`](crate::RingStore::flush) reports this error, and [`Stats`](crate::Stats) counts the rows.
    #[error(
        "a lane ended while {rows} rows of component {present} had no counterpart in component {missing}: they were dropped"
    )]
    Unmatched {
        /// The component that has the rows.
        present: ComponentName,
        /// The component that lacks the rows.
        missing: ComponentName,
        /// How many rows were dropped.
        rows: u64,
    },
    /// A permit for one component was used for a pass, or a permit for a pass was used for one component.
    #[error("this permit holds room for {holds}; call {call}, or reserve the other kind")]
    Permit {
        /// What the permit holds room for.
        holds: &'static str,
        /// The method that uses the permit.
        call: &'static str,
    },
    /// The values do not have the shape of a batch.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The rows could not be written to the disk. The recorder takes no more rows after this error.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store's writer, or a thread of the recorder, panicked. You cannot use the store or the recorder any more.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}

impl WriteError {
    /// Returns whether the store had no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, WriteError::Full(_))
    }

    /// Returns whether the store or the lane is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, WriteError::Closed(_))
    }

    /// Returns why the store or the lane takes no more rows. `None` for another error.
    #[must_use]
    pub fn closed_by(&self) -> Option<ClosedBy> {
        if let WriteError::Closed(closed) = self { Some(closed.by) } else { None }
    }

    /// Returns whether the writer panicked.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        matches!(self, WriteError::Poisoned { .. })
    }
}

fn one_row_hint(expected: usize, got: usize, from_vec: bool) -> String {
    if from_vec && got.is_multiple_of(expected.max(1)) {
        return format!(" in one row: a Vec is one row; use Batch::from_vec(values, {expected}) for several");
    }
    String::new()
}

/// Returned when values do not have the shape of a batch of rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// The array is a single number: it has no axes, so no rows.
    #[error("a batch needs at least one axis, the features; got a single number")]
    NoAxes,
    /// The values do not divide into rows.
    #[error("{len} values do not divide into rows of {features} features")]
    Ragged {
        /// How many values.
        len: usize,
        /// Features in a row.
        features: usize,
    },
}

/// For stores of your own.
impl From<ClosedBy> for WriteError {
    fn from(by: ClosedBy) -> Self {
        WriteError::Closed(Closed::by(by))
    }
}
