//! The numbers a component can hold, and rows of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use half::{bf16, f16};
use ndarray::{ArcArray2, Array2, ArrayView2, s};

use crate::disk::safetensors::Stored;

/// The element type of a component.
///
/// The store converts floating-point rows to the nearest value of the component's type when they come in. NaN stays NaN. A value
/// that is too large for the type becomes infinite: in `f16` from 65,520 on, which massive activations reach. The store counts
/// such rows ([`ComponentStats::overflowed`](crate::ComponentStats::overflowed)) and warns once. It keeps integer rows (token ids, positions) as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 single precision.
    #[default]
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: the upper half of an `f32`.
    BF16,
    /// Unsigned 32-bit integers.
    U32,
    /// Signed 64-bit integers.
    I64,
}

impl DType {
    const ALL: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::U32, DType::I64];

    /// The size of one element, in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            DType::F16 | DType::BF16 => 2,
            DType::F32 | DType::U32 => 4,
            DType::I64 => 8,
        }
    }

    /// Whether the type is a floating-point type, for activations, and not an integer type, for token ids or positions.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// How files store the elements.
    pub(crate) fn stored(self) -> Stored {
        let name = match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::U32 => "U32",
            DType::I64 => "I64",
        };
        Stored { name, size: self.size() }
    }

    /// Whether rows of `self` can be stored as `target`.
    pub(crate) fn converts_to(self, target: DType) -> bool {
        self == target || (self.is_float() && target.is_float())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::I64 => "i64",
        })
    }
}

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        DType::ALL
            .into_iter()
            .find(|dtype| dtype.to_string() == name)
            .ok_or_else(|| UnknownDType { name: name.to_owned() })
    }
}

/// The error for a name that no element type has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {name:?}; use one of f32, f16, bf16, u32, i64")]
pub struct UnknownDType {
    /// The name that was given.
    pub name: String,
}

/// A Rust type that a [`Batch`](crate::Batch) can carry and a [`Minibatch`](crate::Minibatch) can be viewed as.
///
/// Sealed: implemented for `f32`, [`half::f16`], [`half::bf16`], `u32` and `i64`.
pub trait Element: sealed::Plain {
    /// The type's [`DType`].
    const DTYPE: DType;
}

pub(crate) mod sealed {
    /// What the crate needs of an element beyond its name.
    pub trait Plain: bytemuck::Pod + Send + Sync + std::fmt::Debug {
        /// Wraps typed rows into the type-erased form.
        fn wrap(rows: super::Rows<Self>) -> super::AnyRows;

        /// The typed rows. `None` if they are of another type.
        fn unwrap(rows: &super::AnyRows) -> Option<&super::Rows<Self>>;

        /// The nearest `f32`.
        fn nearest_f32(self) -> f32;
    }
}

macro_rules! element {
    ($($type:ty => $dtype:ident, $nearest_f32:expr;)*) => {$(
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
        impl sealed::Plain for $type {
            fn wrap(rows: Rows<Self>) -> AnyRows {
                AnyRows::$dtype(rows)
            }

            fn unwrap(rows: &AnyRows) -> Option<&Rows<Self>> {
                if let AnyRows::$dtype(rows) = rows { Some(rows) } else { None }
            }

            fn nearest_f32(self) -> f32 {
                $nearest_f32(self)
            }
        }
    )*};
}

element! {
    f32 => F32, f32::from;
    f16 => F16, f32::from;
    bf16 => BF16, f32::from;
    u32 => U32, |value| value as f32;
    i64 => I64, |value| value as f32;
}

/// Rows of any element type. The type is `pub` because the sealed trait of `Element` names it, but callers cannot reach it.
#[derive(Debug)]
pub enum AnyRows {
    F32(Rows<f32>),
    F16(Rows<f16>),
    BF16(Rows<bf16>),
    U32(Rows<u32>),
    I64(Rows<i64>),
}

/// Runs `$body` with `$rows` bound to the typed rows.
macro_rules! with_rows {
    ($any:expr, $rows:ident => $body:expr) => {
        match $any {
            $crate::rows::element::AnyRows::F32($rows) => $body,
            $crate::rows::element::AnyRows::F16($rows) => $body,
            $crate::rows::element::AnyRows::BF16($rows) => $body,
            $crate::rows::element::AnyRows::U32($rows) => $body,
            $crate::rows::element::AnyRows::I64($rows) => $body,
        }
    };
}
pub(crate) use with_rows;

pub enum Rows<T> {
    Owned(Array2<T>),
    Shared(ArcArray2<T>),
    /// Rows in memory that another owner keeps, from row `first` on.
    Foreign {
        owner: Arc<dyn Owner<T>>,
        first: usize,
        rows: usize,
        features: usize,
    },
}

pub trait Owner<T>: Send + Sync {
    fn values(&self) -> &[T];
}

impl<T, O: AsRef<[T]> + Send + Sync> Owner<T> for O {
    fn values(&self) -> &[T] {
        self.as_ref()
    }
}

impl<T> fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, features) = self.dim();
        write!(f, "[{rows}, {features}]")
    }
}

impl<T> Rows<T> {
    /// The same rows twice, in the same memory.
    pub(crate) fn share(self) -> (Self, Self)
    where
        T: Clone,
    {
        match self {
            Rows::Owned(array) => Rows::Shared(array.into_shared()).share(),
            Rows::Shared(array) => (Rows::Shared(array.clone()), Rows::Shared(array)),
            Rows::Foreign { owner, first, rows, features } => (
                Rows::Foreign { owner: owner.clone(), first, rows, features },
                Rows::Foreign { owner, first, rows, features },
            ),
        }
    }

    /// The first `n` rows, and the others, in the same memory. `n` is at most the number of rows.
    pub(crate) fn split_at(self, n: usize) -> (Self, Self)
    where
        T: Clone,
    {
        match self {
            Rows::Owned(array) => Rows::Shared(array.into_shared()).split_at(n),
            Rows::Shared(array) => {
                (Rows::Shared(array.clone().slice_move(s![..n, ..])), Rows::Shared(array.slice_move(s![n.., ..])))
            }
            Rows::Foreign { owner, first, rows, features } => (
                Rows::Foreign { owner: owner.clone(), first, rows: n, features },
                Rows::Foreign { owner, first: first + n, rows: rows - n, features },
            ),
        }
    }

    pub(crate) fn dim(&self) -> (usize, usize) {
        match self {
            Rows::Owned(array) => array.dim(),
            Rows::Shared(array) => array.dim(),
            Rows::Foreign { rows, features, .. } => (*rows, *features),
        }
    }

    /// # Panics
    /// Panics if a foreign owner now shows fewer values than when the batch was made.
    pub(crate) fn view(&self) -> ArrayView2<'_, T> {
        match self {
            Rows::Owned(array) => array.view(),
            Rows::Shared(array) => array.view(),
            Rows::Foreign { owner, first, rows, features } => {
                let values = owner.values();
                let shown = values.get(first * features..).unwrap_or_default();
                ArrayView2::from_shape((*rows, *features), shown).unwrap_or_else(|_| {
                    panic!(
                        "the owner of a batch of {rows} rows of {features} features shows only {} values",
                        values.len()
                    )
                })
            }
        }
    }
}
