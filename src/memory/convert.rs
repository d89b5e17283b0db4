//! Reads a batch, as bytes of the element type that a component holds.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::ArrayView2;

use crate::error::IndexError;
use crate::memory::copy::widely;
use crate::rows::batch::Batch;
use crate::rows::element::{DType, Element, with_rows};

/// Reads rows for one component; keeps the memory it converts in.
#[derive(Debug)]
pub(crate) struct RowReader {
    target: DType,
    /// `u64`s, so that every element type is aligned.
    scratch: Vec<u64>,
}

impl RowReader {
    pub(crate) fn new(target: DType) -> Self {
        RowReader { target, scratch: Vec::new() }
    }

    /// Calls `each` with the bytes of the rows in `range`: as many rows in sequence as lie, or are converted, in one
    /// piece, and the number (from 0) of the first.
    ///
    /// The batch's elements must convert to the component's (`Layout::check` sees to that).
    pub(crate) fn read(&mut self, batch: &Batch, range: Range<usize>, each: impl FnMut(usize, &[u8])) {
        if range.is_empty() {
            // Such a batch may say that it has no features.
            return;
        }
        with_rows!(&batch.rows, rows => self.read_typed(rows.view(), range, each));
    }

    fn read_typed<T: Convert>(
        &mut self,
        rows: ArrayView2<'_, T>,
        range: Range<usize>,
        mut each: impl FnMut(usize, &[u8]),
    ) {
        if T::DTYPE == self.target {
            pieces(rows, range, |first, values| each(first, bytemuck::cast_slice(values)));
            return;
        }
        let features = rows.ncols();
        let bytes = features * self.target.size();
        // Narrow rows several at a time.
        let at_once = (CONVERTED / bytes).max(1);
        self.scratch.resize((at_once * bytes).div_ceil(size_of::<u64>()), 0);
        let scratch: &mut [u8] = bytemuck::cast_slice_mut(&mut self.scratch);
        pieces(rows, range, |first, values| {
            for (i, some) in values.chunks(at_once * features).enumerate() {
                let converted = &mut scratch[..some.len() / features * bytes];
                T::convert(some, self.target, converted);
                each(first + i * at_once, converted);
            }
        });
    }
}

/// Bytes that are converted before they are copied: few, so that reading one piece overlaps with writing another.
const CONVERTED: usize = 2 << 10;

/// Calls `each` with rows in one piece and the number (from 0) of the first.
fn pieces<T: Copy>(rows: ArrayView2<'_, T>, range: Range<usize>, mut each: impl FnMut(usize, &[T])) {
    let features = rows.ncols();
    if let Some(values) = rows.as_slice() {
        each(0, &values[range.start * features..range.end * features]);
        return;
    }
    let mut gathered = Vec::new();
    for (i, row) in range.map(|r| rows.row(r)).enumerate() {
        if let Some(row) = row.as_slice() {
            each(i, row);
        } else {
            gathered.clear();
            gathered.extend(row.iter().copied());
            each(i, &gathered);
        }
    }
}

/// Conversion of values to another floating-point type.
trait Convert: Element {
    fn convert(row: &[Self], target: DType, out: &mut [u8]);
}

impl Convert for f32 {
    fn convert(row: &[f32], target: DType, out: &mut [u8]) {
        match target {
            DType::F16 => bytemuck::cast_slice_mut::<u8, f16>(out).convert_from_f32_slice(row),
            DType::BF16 => widely(|| round_to_bf16(row, bytemuck::cast_slice_mut(out))),
            _ => no_conversion(DType::F32, target),
        }
    }
}

impl Convert for f16 {
    fn convert(row: &[f16], target: DType, out: &mut [u8]) {
        match target {
            DType::F32 => row.convert_to_f32_slice(bytemuck::cast_slice_mut(out)),
            DType::BF16 => map(row, bytemuck::cast_slice_mut(out), |x| bf16::from_f32(x.to_f32())),
            _ => no_conversion(DType::F16, target),
        }
    }
}

impl Convert for bf16 {
    fn convert(row: &[bf16], target: DType, out: &mut [u8]) {
        match target {
            DType::F32 => widely(|| map(row, bytemuck::cast_slice_mut(out), bf16::to_f32)),
            DType::F16 => map(row, bytemuck::cast_slice_mut(out), |x| f16::from_f32(x.to_f32())),
            _ => no_conversion(DType::BF16, target),
        }
    }
}

impl Convert for u32 {
    fn convert(_: &[u32], target: DType, _: &mut [u8]) {
        no_conversion(DType::U32, target)
    }
}

impl Convert for i64 {
    fn convert(_: &[i64], target: DType, _: &mut [u8]) {
        no_conversion(DType::I64, target)
    }
}

fn no_conversion(from: DType, to: DType) {
    unreachable!("{from} rows were accepted for a component of {to}")
}

fn map<S: Copy, T>(row: &[S], out: &mut [T], convert: impl Fn(S) -> T) {
    for (out, &x) in out.iter_mut().zip(row) {
        *out = convert(x);
    }
}

/// `bf16::from_f32` without its branch, so that the compiler can do many at once: to nearest, ties to even, NaN stays NaN.
fn round_to_bf16(row: &[f32], out: &mut [u16]) {
    map(row, out, |x| {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet_nan } else { rounded }) as u16
    });
}

/// Widens a component's row to `f32`, unless it holds integers.
pub(crate) fn widen(row: &[u8], component: usize, dtype: DType, out: &mut [f32]) -> Result<(), IndexError> {
    match dtype {
        DType::F32 => out.copy_from_slice(bytemuck::cast_slice(row)),
        DType::F16 => bytemuck::cast_slice::<u8, f16>(row).convert_to_f32_slice(out),
        DType::BF16 => map(bytemuck::cast_slice(row), out, bf16::to_f32),
        DType::U32 | DType::I64 => return Err(IndexError::Integers { component, dtype }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        let special = [
            0,
            1,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fc0_0000,
            0xff80_0000,
            0xffff_ffff,
            0x3f80_8000,
            0x3f81_8000,
        ];
        let bits = special.into_iter().chain((0..=u32::MAX).step_by(if cfg!(miri) { 99_999_989 } else { 65_521 }));
        let row: Vec<f32> = bits.map(f32::from_bits).collect();
        let mut out = vec![0; row.len()];
        round_to_bf16(&row, &mut out);
        for (x, got) in row.iter().zip(out) {
            assert_eq!(got, bf16::from_f32(*x).to_bits(), "{x} ({:#x})", x.to_bits());
        }
    }
}
