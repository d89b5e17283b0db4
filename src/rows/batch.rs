//! Rows handed to a store, by value.

use std::fmt;
use std::sync::Arc;

use ndarray::{ArcArray2, Array1, Array2, Array3, ArrayD, ArrayView2};

use crate::error::{ShapeError, WriteError};
use crate::rows::element::{AnyRows, DType, Element, Rows, sealed::Plain, with_rows};

/// Rows of one component, `[rows, features]`, handed to a store by value.
///
/// Making one copies nothing, whatever the layout (but see [`Batch::from_dyn`]). An [`ArcArray2`] or
/// [`Batch::from_owner`] lends memory that the caller keeps: the store drops its share once the rows are in a frame.
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
    /// Whether it was made from a `Vec`, which is one row.
    pub(crate) from_vec: bool,
}

impl Batch {
    fn new<T: Element>(rows: Rows<T>) -> Self {
        Batch { rows: Plain::wrap(rows), from_vec: false }
    }

    /// Rows of `features` values each, one after the other.
    ///
    /// # Errors
    /// [`ShapeError::Ragged`] if the values do not divide into rows.
    pub fn from_vec<T: Element>(values: Vec<T>, features: usize) -> Result<Self, ShapeError> {
        let rows = count_rows(values.len(), features)?;
        let array = Array2::from_shape_vec((rows, features), values)
            .map_err(|_| ShapeError::Ragged { len: rows * features, features })?;
        Ok(Batch::new(Rows::Owned(array)))
    }

    /// An array whose last axis is the features. The axes before it become rows.
    ///
    /// Copies the values if the layout does not allow these axes to be merged.
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

    /// Rows in memory that another owner keeps (a pinned buffer, a tensor of another library), without a copy.
    ///
    /// The writer reads and drops the owner on its own thread. The owner must go on showing at least the values it shows now.
    /// If it shows fewer, or panics, the store is poisoned. The owner may call anything of the store that does not wait for
    /// the writer. It must not call `empty`, `get` or `extend_blocking`, nor wait for a handle or a flush.
    ///
    /// # Errors
    /// [`ShapeError::Ragged`] if the values do not divide into rows.
    pub fn from_owner<T, O>(owner: O, features: usize) -> Result<Self, ShapeError>
    where
        T: Element,
        O: AsRef<[T]> + Send + Sync + 'static,
    {
        let rows = count_rows(owner.as_ref().len(), features)?;
        Ok(Batch::lent(owner, rows, features))
    }

    /// As [`from_owner`](Self::from_owner), of as many values as `rows` and `features` say.
    pub(crate) fn lent<T, O>(owner: O, rows: usize, features: usize) -> Self
    where
        T: Element,
        O: AsRef<[T]> + Send + Sync + 'static,
    {
        Batch::new(Rows::Foreign { owner: Arc::new(owner), rows, features })
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        with_rows!(&self.rows, rows => rows.dim().0)
    }

    /// Features of a row.
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

    /// The values, `[rows, features]`, if they are of type `T`.
    ///
    /// # Panics
    /// Panics if the owner of a batch made by [`from_owner`](Batch::from_owner) now shows fewer values than it did.
    #[must_use]
    pub fn view<T: Element>(&self) -> Option<ArrayView2<'_, T>> {
        T::unwrap(&self.rows).map(Rows::view)
    }

    /// Two batches over the same memory, for two stores. Copies nothing; the memory is released with the second.
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

    /// Copies the values as `f32`, `[rows, features]`, for stores that keep rows in another form.
    ///
    /// Integers are rounded to the nearest `f32`.
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

/// One row.
impl<T: Element> From<Array1<T>> for Batch {
    fn from(row: Array1<T>) -> Self {
        Batch::new(Rows::Owned(row.insert_axis(ndarray::Axis(0))))
    }
}

/// One row.
impl<T: Element> From<Vec<T>> for Batch {
    fn from(row: Vec<T>) -> Self {
        Batch { from_vec: true, ..Array1::from(row).into() }
    }
}

/// `[batch, position, features]`: the first two axes become rows.
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

/// A batch that was not taken: the reason, and the batch itself.
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
    /// Why.
    pub error: WriteError,
    /// The batch, as it was given.
    pub batch: Batch,
}

impl Refused {
    /// The batch, as it was given.
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

/// Reads as the error that it carries.
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

/// Lets `?` turn a batch's error into a store's. [`Refused::batch`] is empty then.
impl From<ShapeError> for Refused {
    fn from(error: ShapeError) -> Self {
        Refused { error: error.into(), batch: Array2::<f32>::zeros((0, 0)).into() }
    }
}

/// A pass that was not taken, or not as a whole: the reason, and the batches.
#[non_exhaustive]
pub struct RefusedPass {
    /// Why.
    pub error: WriteError,
    /// The batches that were not taken, in the order in which they were given. All of them, unless the store's
    /// `extend_pass` is the trait's default.
    pub batches: Vec<Batch>,
}

impl RefusedPass {
    /// A refusal, for stores of your own.
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

/// Reads as the error that it carries.
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
