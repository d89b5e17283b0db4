//! Counts of rows whose values a store could not keep as numbers.

use std::ops::AddAssign;

use crate::rows::layout::Component;

/// How many rows of a component had values that are not numbers any more, or never were.
///
/// A row counts once, however many of its values are like this. It may count as both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValueCounts {
    /// Rows with a finite value that was too large for the component's element type and became infinite, such as 70,000 in `f16`.
    pub overflowed: u64,
    /// Rows that arrived with a NaN or an infinite value.
    pub not_finite: u64,
}

impl AddAssign for ValueCounts {
    fn add_assign(&mut self, other: ValueCounts) {
        self.overflowed += other.overflowed;
        self.not_finite += other.not_finite;
    }
}

/// The kinds of values that have been said of a component, or are to be said now.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub(crate) struct Said {
    overflowed: bool,
    not_finite: bool,
}

impl Said {
    /// Notes what `counts` has, and returns what has not been noted before.
    pub(crate) fn note(&mut self, counts: ValueCounts) -> Said {
        let (overflowed, not_finite) = (counts.overflowed > 0, counts.not_finite > 0);
        let new = Said { overflowed: overflowed && !self.overflowed, not_finite: not_finite && !self.not_finite };
        self.overflowed |= overflowed;
        self.not_finite |= not_finite;
        new
    }

    /// Logs a warning for each kind. This runs foreign code: hold no lock.
    pub(crate) fn say(self, component: &Component) {
        let (component, dtype) = (&*component.name, component.dtype);
        if self.overflowed {
            tracing::warn!(
                component,
                "values are too large for {dtype} and became infinite. Use bf16 or f32, or scale the rows. Such rows are counted as overflowed"
            );
        }
        if self.not_finite {
            tracing::warn!(
                component,
                "rows arrived with NaN or infinite values, and are kept so. Such rows are counted as not finite"
            );
        }
    }
}
