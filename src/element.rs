//! The numbers a component can hold.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::error::BuildError;

/// The element type of a component.
///
/// Floating-point rows are converted to the component's type on the way in; integer rows (token ids, positions)
/// are kept as they are.
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

    /// Bytes an element takes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            DType::F16 | DType::BF16 => 2,
            DType::F32 | DType::U32 => 4,
            DType::I64 => 8,
        }
    }

    /// Whether the type holds activations (as opposed to token ids or positions).
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
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
    type Err = BuildError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        DType::ALL
            .into_iter()
            .find(|dtype| dtype.to_string() == name)
            .ok_or_else(|| BuildError::UnknownDType { name: name.to_owned() })
    }
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
        fn wrap(rows: crate::batch::Rows<Self>) -> crate::batch::AnyRows;
    }
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
        impl sealed::Plain for $type {
            fn wrap(rows: crate::batch::Rows<Self>) -> crate::batch::AnyRows {
                crate::batch::AnyRows::$dtype(rows)
            }
        }
    )*};
}

element!(f32 => F32, f16 => F16, bf16 => BF16, u32 => U32, i64 => I64);
