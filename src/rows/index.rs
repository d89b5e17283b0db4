//! The index that [`get`](crate::ActivationStore::get) takes.

use std::ops::{Range, RangeFrom, RangeFull, RangeTo};
use std::sync::Arc;

use ndarray::{ArrayD, Dimension, IxDyn, Slice, SliceInfo, SliceInfoElem};

use crate::rows::element::DType;

/// The rows, components and features to get: up to three indices or ranges, in this order.
///
/// Made from a row, a (row, component) or (row, component, feature) tuple, a range of rows (`2..6`, `2..`, `..6`, `..`), or a
/// slice of [`ndarray::s!`], with steps and negative indices. An index removes its axis from the result. A range keeps its
/// axis. An axis that you leave out is taken whole.
///
/// ```
/// use activation_store::{ActivationStore, TensorStore};
/// use ndarray::{Array2, s};
///
/// let store = TensorStore::builder().component("a", 3).component("b", 3).max_items(10).build()?;
/// store.extend(Array2::<f32>::zeros((10, 3)), 0)?.wait()?;
/// store.extend(Array2::<f32>::ones((10, 3)), 1)?.wait()?;
/// assert_eq!(store.get(4)?.shape(), [2, 3]); // [component, feature]
/// assert_eq!(store.get((4, 1))?.shape(), [3]); // [feature]
/// assert_eq!(store.get((4, 1, 2))?.ndim(), 0); // a number
/// assert_eq!(store.get(2..6)?.shape(), [4, 2, 3]);
/// assert_eq!(store.get(s![..;3, 1, -2..])?.shape(), [4, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Index {
    axes: Vec<SliceInfoElem>,
}

impl From<usize> for Index {
    fn from(row: usize) -> Self {
        Index { axes: vec![number(row)] }
    }
}

impl From<(usize, usize)> for Index {
    fn from((row, component): (usize, usize)) -> Self {
        Index { axes: vec![number(row), number(component)] }
    }
}

impl From<(usize, usize, usize)> for Index {
    fn from((row, component, feature): (usize, usize, usize)) -> Self {
        Index { axes: vec![number(row), number(component), number(feature)] }
    }
}

impl From<Range<usize>> for Index {
    fn from(rows: Range<usize>) -> Self {
        between(rows.start, Some(rows.end))
    }
}

impl From<RangeFrom<usize>> for Index {
    fn from(rows: RangeFrom<usize>) -> Self {
        between(rows.start, None)
    }
}

impl From<RangeTo<usize>> for Index {
    fn from(rows: RangeTo<usize>) -> Self {
        between(0, Some(rows.end))
    }
}

fn between(start: usize, end: Option<usize>) -> Index {
    Index { axes: vec![Slice { start: signed(start), end: end.map(signed), step: 1 }.into()] }
}

/// Makes an index of a position. A position that does not fit an `isize` becomes one past the end of every axis, because negative
/// numbers count from the end.
fn number(position: usize) -> SliceInfoElem {
    SliceInfoElem::Index(signed(position))
}

fn signed(position: usize) -> isize {
    isize::try_from(position).unwrap_or(isize::MAX)
}

impl From<RangeFull> for Index {
    fn from(rows: RangeFull) -> Self {
        Index { axes: vec![rows.into()] }
    }
}

impl<T: AsRef<[SliceInfoElem]>, In: Dimension, Out: Dimension> From<SliceInfo<T, In, Out>> for Index {
    fn from(info: SliceInfo<T, In, Out>) -> Self {
        let axes: &[SliceInfoElem] = info.as_ref();
        Index { axes: axes.to_vec() }
    }
}

impl From<&[SliceInfoElem]> for Index {
    fn from(axes: &[SliceInfoElem]) -> Self {
        Index { axes: axes.to_vec() }
    }
}

impl Index {
    /// Reads the values at the index from a store of `rows` rows. `features` has the number of features of each component.
    ///
    /// `read(row, component, out)` writes the values of a row to `out`, which has exactly as many places as the component has
    /// features. A store needs nothing else to implement `get`. The result has the shape `[row, component, feature]`, without the
    /// axes that an index removed.
    ///
    /// # Errors
    /// [`IndexError`] if an index is past the end of its axis, the index has more than three axes or a new axis, a step is 0, or
    /// the chosen components differ in their number of features. Also each error that `read` returns.
    pub fn select(
        &self,
        rows: usize,
        features: &[usize],
        mut read: impl FnMut(usize, usize, &mut [f32]) -> Result<(), IndexError>,
    ) -> Result<ArrayD<f32>, IndexError> {
        if self.axes.len() > 3 {
            return Err(IndexError::TooManyAxes { axes: self.axes.len() });
        }
        let axis = |axis: usize, name, len| Picked::new(self.axes.get(axis), name, len);
        let picked_rows = axis(0, "row", rows)?;
        let components = axis(1, "component", features.len())?;
        let mut chosen = components.positions.iter().copied();
        let first = chosen.next();
        // If no component is chosen, the first one gives the width.
        let width = features.get(first.unwrap_or(0)).copied().unwrap_or(0);
        if let (Some(first), Some(other)) = (first, chosen.find(|&component| features[component] != width)) {
            return Err(IndexError::Unequal { first, first_features: width, other, other_features: features[other] });
        }
        let picked_features = axis(2, "feature", width)?;

        let features = &picked_features.positions;
        let whole_rows = features.iter().copied().eq(0..width);
        let mut line = vec![0.0; width];
        let mut values = vec![0.0; picked_rows.positions.len() * components.positions.len() * features.len()];
        // Without features there are no chunks, but `chunks_exact_mut` panics if the length is 0.
        let mut chunks = values.chunks_exact_mut(features.len().max(1));
        for &row in &picked_rows.positions {
            for (&component, out) in components.positions.iter().zip(&mut chunks) {
                if whole_rows {
                    read(row, component, out)?;
                } else {
                    read(row, component, &mut line)?;
                    out.iter_mut().zip(features).for_each(|(out, &feature)| *out = line[feature]);
                }
            }
        }
        let shape: Vec<usize> =
            [picked_rows, components, picked_features].iter().filter_map(Picked::axis_len).collect();
        Ok(ArrayD::from_shape_vec(IxDyn(&shape), values).expect("as many values as the axes say"))
    }
}

/// The positions picked along an axis, and whether the result keeps the axis.
struct Picked {
    positions: Vec<usize>,
    keeps_axis: bool,
}

impl Picked {
    fn new(asked: Option<&SliceInfoElem>, axis: &'static str, len: usize) -> Result<Self, IndexError> {
        match asked.copied().unwrap_or(SliceInfoElem::from(..)) {
            SliceInfoElem::NewAxis => Err(IndexError::NewAxis),
            SliceInfoElem::Index(index) => {
                let from_end = index.checked_add_unsigned(len).filter(|_| index < 0);
                let position = usize::try_from(from_end.unwrap_or(index)).ok().filter(|&position| position < len);
                let position = position.ok_or(IndexError::OutOfRange { axis, index, len })?;
                Ok(Picked { positions: vec![position], keeps_axis: false })
            }
            SliceInfoElem::Slice { start, end, step } => {
                let range = Slice { start, end, step };
                Ok(Picked { positions: positions(range, axis, len)?, keeps_axis: true })
            }
        }
    }

    fn axis_len(&self) -> Option<usize> {
        self.keeps_axis.then_some(self.positions.len())
    }
}

/// The positions of a range with a step. A negative step gives them in reverse, as in `ndarray`.
fn positions(range: Slice, axis: &'static str, len: usize) -> Result<Vec<usize>, IndexError> {
    let bound = |index: isize| {
        let from_end = if index < 0 { index.checked_add_unsigned(len) } else { Some(index) };
        from_end
            .and_then(|position| usize::try_from(position).ok())
            .filter(|&position| position <= len)
            .ok_or(IndexError::OutOfRange { axis, index, len })
    };
    let (start, end) = (bound(range.start)?, bound(range.end.unwrap_or(len as isize))?);
    let step = range.step.unsigned_abs();
    if step == 0 {
        return Err(IndexError::ZeroStep { axis });
    }
    let forward = start..end.max(start);
    Ok(if range.step < 0 { forward.rev().step_by(step).collect() } else { forward.step_by(step).collect() })
}

/// Returned when [`get`](crate::ActivationStore::get) cannot return the values at an index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The index is past the end of its axis.
    #[error("{axis} index {index} is out of range: there are {len}")]
    OutOfRange {
        /// `"row"`, `"component"` or `"feature"`.
        axis: &'static str,
        /// The index.
        index: isize,
        /// The length of the axis.
        len: usize,
    },
    /// The step of a range is 0.
    #[error("the step of the {axis} range is 0; use 1 for every {axis}, or a negative step for the reverse order")]
    ZeroStep {
        /// `"row"`, `"component"` or `"feature"`.
        axis: &'static str,
    },
    /// The index has more axes than a store.
    #[error("{axes} indices given; a store has three axes: row, component, feature")]
    TooManyAxes {
        /// How many were given.
        axes: usize,
    },
    /// The index adds an axis.
    #[error("a store cannot be indexed with a new axis; insert it in the result")]
    NewAxis,
    /// The selected components differ in width.
    #[error("components {first} and {other} have {first_features} and {other_features} features; select one component")]
    Unequal {
        /// One component.
        first: usize,
        /// Features of a row of `first`.
        first_features: usize,
        /// A component that differs from `first`.
        other: usize,
        /// Features of a row of `other`.
        other_features: usize,
    },
    /// The component holds integers, which `get` does not convert.
    #[error(
        "component {component} holds {dtype}, and get returns f32; select other components, or view a minibatch as {dtype}"
    )]
    Integers {
        /// The component.
        component: usize,
        /// The element type of the component.
        dtype: DType,
    },
    /// The rows are on disk, and a file cannot be read.
    #[error("{reason}")]
    Unreadable {
        /// Which file it is, and what is wrong with it.
        reason: String,
    },
    /// The store has ended. You can only drain the minibatches that are left.
    #[error("the store has ended; its remaining minibatches can only be drained")]
    Ended,
    /// The store's writer panicked. You cannot use the store any more.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message.
        cause: Arc<str>,
    },
}
