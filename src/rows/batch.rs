//! Rows handed to a store, by value.

use std::fmt;
use std::sync::Arc;

use ndarray::{ArcArray2, Array1, Array2, Array3, ArrayD, ArrayView2};

use crate::rows::element::{AnyRows, DType, Element, Rows, sealed::Plain, with_rows};
use crate::rows::error::{ShapeError, WriteError};

/// Rows of one component, `[rows, features]`, handed to a store by value.
///
/// Making a batch copies no values, with one exception: [`Batch::from_dyn`] and an [`Array3`] copy them if the layout does not
/// allow the axes to be merged. An [`ArcArray2`] or [`Batch::from_owner`] lends memory that you keep. The store drops its share
/// of that memory once the rows are in a frame.
///
/// ```
/// use activation_store::Batch;
/// use ndarray::{Array2, ArrayD};
///
/// assert_eq!(Batch::from(Array2::<f32>::zeros((8, 3))).rows(), 8);
/// // The axes before the features become rows: [batch, position, features].
/// assert_eq!(Batch::from_dyn(ArrayD::<f32>::zeros(vec![2, 4, 3]))?.rows(), 8);
/// assert!(Batch::from_vec(vec![1.0_f32; 7], 3).is_err());
/// assert_eq!(Batch::from(vec![5_i64, 6]).view::<i64>().unwrap(), ndarray::array![[5, 6]]);
/// # Ok::<(), activation_store::ShapeError>(())
/// ```
pub struct Batch {
    pub(crate) rows: AnyRows,
    /// Whether the batch was made from a `Vec`, which is one row.
    pub(crate) from_vec: bool,
}

impl Batch {
    fn new<T: Element>(rows: Rows<T>) -> Self {
        Batch { rows: Plain::wrap(rows), from_vec: false }
    }

    /// Makes a batch from rows of `features` values each, one row after the other.
    ///
    /// # Errors
    /// [`ShapeError::Ragged`] if `features` does not divide the number of values.
    pub fn from_vec<T: Element>(values: Vec<T>, features: usize) -> Result<Self, ShapeError> {
        let rows = count_rows(values.len(), features)?;
        let array = Array2::from_shape_vec((rows, features), values)
            .map_err(|_| ShapeError::Ragged { len: rows * features, features })?;
        Ok(Batch::new(Rows::Owned(array)))
    }

    /// Makes a batch from an array whose last axis is the features. The axes before the last become rows.
    ///
    /// Copies the values if the layout does not allow the axes to be merged.
    ///
    /// # Errors
    /// [`ShapeError::NoAxes`] for an array of rank 0.
    pub fn from_dyn<T: Element>(array: ArrayD<T>) -> Result<Self, ShapeError> {
        let Some((&features, leading)) = array.shape().split_last() else {
            return Err(ShapeError::NoAxes);
        };
        let rows = leading.iter().product();
        let array = array.into_shape_clone((rows, features)).map_err(|_| ShapeError::NoAxes)?;
        Ok(Batch::new(Rows::Owned(array)))
    }

    /// Makes a batch from memory that another owner keeps (a pinned buffer, a tensor of another library), without a copy.
    ///
    /// The writer reads and drops the owner on the writer's thread. The owner must keep showing at least the values that it
    /// shows now. If the owner shows fewer values, or panics, the store is poisoned. The owner may call methods of the store
    /// that do not wait for the writer. The owner must not call `empty`, `get` or `extend_blocking`, and must not wait for a
    /// handle or a flush.
    ///
    /// # Errors
    /// [`ShapeError::Ragged`] if `features` does not divide the number of values.
    pub fn from_owner<T, O>(owner: O, features: usize) -> Result<Self, ShapeError>
    where
        T: Element,
        O: AsRef<[T]> + Send + Sync + 'static,
    {
        let rows = count_rows(owner.as_ref().len(), features)?;
        Ok(Batch::lent(owner, rows, features))
    }

    /// As [`from_owner`](Self::from_owner), for an owner that shows at least `rows` × `features` values.
    pub(crate) fn lent<T, O>(owner: O, rows: usize, features: usize) -> Self
    where
        T: Element,
        O: AsRef<[T]> + Send + Sync + 'static,
    {
        Batch::new(Rows::Foreign { owner: Arc::new(owner), first: 0, rows, features })
    }

    /// The number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        with_rows!(&self.rows, rows => rows.dim().0)
    }

    /// The number of features of each row.
    #[must_use]
    pub fn features(&self) -> usize {
        with_rows!(&self.rows, rows => rows.dim().1)
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match &self.rows {
            AnyRows::F32(_) => DType::F32,
            AnyRows::F16(_) => DType::F16,
            AnyRows::BF16(_) => DType::BF16,
            AnyRows::U32(_) => DType::U32,
            AnyRows::I64(_) => DType::I64,
        }
    }

    /// The values, `[rows, features]`. `None` if they are not of type `T`.
    ///
    /// # Panics
    /// Panics if the owner of a batch made by [`from_owner`](Batch::from_owner) now shows fewer values than it did.
    #[must_use]
    pub fn view<T: Element>(&self) -> Option<ArrayView2<'_, T>> {
        T::unwrap(&self.rows).map(Rows::view)
    }

    /// Makes two batches over the same memory, for two stores. Copies nothing. The memory is released when both batches are dropped.
    ///
    /// ```
    /// use activation_store::Batch;
    ///
    /// let (a, b) = Batch::from_vec(vec![1.0_f32, 2.0], 2)?.share();
    /// assert_eq!(a.view::<f32>().unwrap().as_ptr(), b.view::<f32>().unwrap().as_ptr());
    /// # Ok::<(), activation_store::ShapeError>(())
    /// ```
    #[must_use]
    pub fn share(self) -> (Self, Self) {
        let from_vec = self.from_vec;
        let (mut first, mut second) = with_rows!(self.rows, rows => {
            let (first, second) = rows.share();
            (Batch::new(first), Batch::new(second))
        });
        (first.from_vec, second.from_vec) = (from_vec, from_vec);
        (first, second)
    }

    /// The first `n` rows, and the others, over the same memory. `n` is at most the number of rows.
    pub(crate) fn split_at(self, n: usize) -> (Self, Self) {
        let from_vec = self.from_vec;
        let (mut first, mut second) = with_rows!(self.rows, rows => {
            let (first, second) = rows.split_at(n);
            (Batch::new(first), Batch::new(second))
        });
        (first.from_vec, second.from_vec) = (from_vec, from_vec);
        (first, second)
    }

    /// Copies the values as `f32`, `[rows, features]`, for stores that keep rows in another form.
    ///
    /// Rounds integers to the nearest `f32`.
    ///
    /// # Panics
    /// Panics if the owner of a batch made by [`from_owner`](Batch::from_owner) now shows fewer values than it did.
    #[must_use]
    pub fn to_f32(&self) -> Array2<f32> {
        with_rows!(&self.rows, rows => rows.view().mapv(Plain::nearest_f32))
    }
}

fn count_rows(len: usize, features: usize) -> Result<usize, ShapeError> {
    match (len, features) {
        (0, _) => Ok(0),
        (_, 0) => Err(ShapeError::Ragged { len, features }),
        _ if len.is_multiple_of(features) => Ok(len / features),
        _ => Err(ShapeError::Ragged { len, features }),
    }
}

impl<T: Element> From<Array2<T>> for Batch {
    fn from(array: Array2<T>) -> Self {
        Batch::new(Rows::Owned(array))
    }
}

impl<T: Element> From<ArcArray2<T>> for Batch {
    fn from(array: ArcArray2<T>) -> Self {
        Batch::new(Rows::Shared(array))
    }
}

/// Makes a batch of one row.
impl<T: Element> From<Array1<T>> for Batch {
    fn from(row: Array1<T>) -> Self {
        Batch::new(Rows::Owned(row.insert_axis(ndarray::Axis(0))))
    }
}

/// Makes a batch of one row.
impl<T: Element> From<Vec<T>> for Batch {
    fn from(row: Vec<T>) -> Self {
        Batch { from_vec: true, ..Array1::from(row).into() }
    }
}

/// Makes a batch from `[batch, position, features]`: the first two axes become rows.
///
/// Copies the values if the layout does not allow these two axes to be merged.
impl<T: Element> From<Array3<T>> for Batch {
    fn from(array: Array3<T>) -> Self {
        let (batch, positions, features) = array.dim();
        let rows = array.into_shape_clone((batch * positions, features));
        Batch::new(Rows::Owned(rows.expect("the product of two axes is one axis")))
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} rows of {} {})", self.rows(), self.features(), self.dtype())
    }
}

/// A batch that the store refused: the reason, and the batch itself.
///
/// ```
/// use activation_store::{RingStore, WriteError};
/// use ndarray::Array2;
///
/// let store = RingStore::builder().component("mlp", 4).batch_size(2).window(4).build()?;
/// let refused = store.extend(Array2::<f32>::zeros((3, 5)), 0).unwrap_err();
/// assert!(matches!(refused.error, WriteError::Features { expected: 4, got: 5, .. }));
/// assert_eq!(refused.into_batch().rows(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Refused {
    /// The reason.
    pub error: WriteError,
    /// The batch, as you gave it.
    pub batch: Batch,
}

impl Refused {
    /// The batch, as you gave it.
    #[must_use]
    pub fn into_batch(self) -> Batch {
        self.batch
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// Displays as the error that it carries, and has the same source.
impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl From<Refused> for WriteError {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// Lets `?` turn a [`ShapeError`] into a [`Refused`], whose [`Refused::batch`] is empty.
impl From<ShapeError> for Refused {
    fn from(error: ShapeError) -> Self {
        Refused { error: error.into(), batch: Array2::<f32>::zeros((0, 0)).into() }
    }
}

/// A pass that the store refused: the reason, and the batches that the store did not take.
#[non_exhaustive]
pub struct RefusedPass {
    /// The reason.
    pub error: WriteError,
    /// The batches that the store did not take, in the order in which you gave them. These are all batches of the pass, unless
    /// the store uses the trait's default `extend_pass`.
    pub batches: Vec<Batch>,
}

impl RefusedPass {
    /// Makes a refusal, for a store of your own.
    #[must_use]
    pub fn new(error: WriteError, batches: Vec<Batch>) -> Self {
        RefusedPass { error, batches }
    }
}

impl fmt::Display for RefusedPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// Displays as the error that it carries, and has the same source.
impl std::error::Error for RefusedPass {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl fmt::Debug for RefusedPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefusedPass").field("error", &self.error).finish_non_exhaustive()
    }
}

impl From<RefusedPass> for WriteError {
    fn from(refused: RefusedPass) -> Self {
        refused.error
    }
}

/// Checks that a batch is one row.
pub(crate) fn one_row(row: Batch) -> Result<Batch, Refused> {
    match row.rows() {
        1 => Ok(row),
        rows => Err(Refused { error: WriteError::NotOneRow { rows }, batch: row }),
    }
}
