//! Element types by name, and code for each of them.

use activation_store::DType;
use pyo3::prelude::*;

use crate::errors::OrRaise;

pub(crate) fn parse(name: &str) -> PyResult<DType> {
    name.parse().or_raise()
}

/// Runs `$call` with `$T` as the element type.
macro_rules! with_dtype {
    ($dtype:expr, $T:ident => $call:expr) => {
        match $dtype {
            ::activation_store::DType::F32 => {
                type $T = f32;
                $call
            }
            ::activation_store::DType::F16 => {
                type $T = half::f16;
                $call
            }
            ::activation_store::DType::BF16 => {
                type $T = half::bf16;
                $call
            }
            ::activation_store::DType::U32 => {
                type $T = u32;
                $call
            }
            ::activation_store::DType::I64 => {
                type $T = i64;
                $call
            }
            other => Err(pyo3::exceptions::PyTypeError::new_err(format!("{other} rows are not supported here"))),
        }
    };
}
pub(crate) use with_dtype;
