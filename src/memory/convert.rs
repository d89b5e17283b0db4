//! Reads the rows of a batch as bytes of the component's element type, or copies them to slots.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::ArrayView2;

use crate::memory::copy::{RowCopier, Slots};
use crate::memory::finite::{Checked, check, count};
use crate::memory::narrow::bf16_bits;
use crate::memory::widely::widely;
use crate::rows::batch::Batch;
use crate::rows::element::{AnyRows, DType, with_rows};
use crate::rows::index::IndexError;
use crate::rows::values::ValueCounts;

/// Reads rows for one component, and counts the rows whose values are not finite or overflow. Keeps the memory that it uses for
/// conversion.
#[derive(Debug)]
pub(crate) struct RowReader {
    target: DType,
    /// The converted rows. The vector holds `u64`s, so every element type is aligned.
    scratch: Vec<u64>,
    /// The rows counted since the last `take_counts`.
    counts: ValueCounts,
}

impl RowReader {
    pub(crate) fn new(target: DType) -> Self {
        RowReader { target, scratch: Vec::new(), counts: ValueCounts::default() }
    }

    /// Calls `each` with the bytes of the rows in `range`, in pieces of one or more rows. The first argument is the number of
    /// the piece's first row, counted from 0 at the start of `range`.
    ///
    /// The batch's elements must convert to the component's: `Layout::check` has checked this.
    pub(crate) fn read(&mut self, batch: &Batch, range: Range<usize>, each: impl FnMut(usize, &[u8])) {
        if range.is_empty() {
            // An empty batch may have 0 features, so a row may have 0 bytes.
            return;
        }
        with_rows!(&batch.rows, rows => self.read_typed(rows.view(), range, each));
    }

    /// Copies the rows in `range` to their slots. The first row goes to slot 0.
    pub(crate) fn copy(&mut self, batch: &Batch, range: Range<usize>, copier: &RowCopier, slots: &mut impl Slots) {
        if range.is_empty() {
            return;
        }
        match &batch.rows {
            AnyRows::F32(rows) if self.target == DType::BF16 => {
                let features = batch.features();
                pieces(rows.view(), range, |first, values| {
                    blocks(values, features, |at, block| {
                        let largest =
                            copier.copy_as_bf16(block, features, &mut Behind { slots: &mut *slots, first: first + at });
                        self.counts += count(block, features, DType::BF16, &largest);
                    });
                });
            }
            rows => with_rows!(rows, rows => self.copy_typed(rows.view(), range, copier, slots)),
        }
    }

    /// Returns the rows counted since the last call.
    pub(crate) fn take_counts(&mut self) -> ValueCounts {
        std::mem::take(&mut self.counts)
    }

    fn copy_typed<T: Convert>(
        &mut self,
        rows: ArrayView2<'_, T>,
        range: Range<usize>,
        copier: &RowCopier,
        slots: &mut impl Slots,
    ) {
        let features = rows.ncols();
        let width = features * self.target.size();
        if T::DTYPE != self.target {
            self.read_typed(rows, range, |first, rows| copier.copy(rows, width, &mut Behind { slots, first }));
            return;
        }
        pieces(rows, range, |first, values| {
            blocks(values, features, |at, block| {
                let slots = &mut Behind { slots: &mut *slots, first: first + at };
                let largest = copier.copy_watched(bytemuck::cast_slice(block), width, slots);
                self.counts += count(block, features, self.target, &largest);
            });
        });
    }

    fn read_typed<T: Convert>(
        &mut self,
        rows: ArrayView2<'_, T>,
        range: Range<usize>,
        mut each: impl FnMut(usize, &[u8]),
    ) {
        let features = rows.ncols();
        if T::DTYPE == self.target {
            pieces(rows, range, |first, values| {
                blocks(values, features, |_, block| self.counts += check(block, features, self.target));
                each(first, bytemuck::cast_slice(values));
            });
            return;
        }
        let bytes = features * self.target.size();
        // Converts several narrow rows at a time.
        let at_once = (CONVERTED / bytes).max(1);
        self.scratch.resize((at_once * bytes).div_ceil(size_of::<u64>()), 0);
        let scratch: &mut [u8] = bytemuck::cast_slice_mut(&mut self.scratch);
        pieces(rows, range, |first, values| {
            for (i, some) in values.chunks(at_once * features).enumerate() {
                let converted = &mut scratch[..some.len() / features * bytes];
                self.counts += check(some, features, self.target);
                T::convert(some, self.target, converted);
                each(first + i * at_once, converted);
            }
        });
    }
}

/// The slots that start at number `first`.
struct Behind<'a, S> {
    slots: &'a mut S,
    first: usize,
}

impl<S: Slots> Slots for Behind<'_, S> {
    #[inline]
    fn slot(&mut self, i: usize) -> &mut [u8] {
        self.slots.slot(self.first + i)
    }
}

/// The number of bytes that are converted before they are copied. It is small, so reading one piece overlaps with writing another.
const CONVERTED: usize = 2 << 10;

/// The number of bytes that are looked at together. If one of their values needs a closer look, they are still in the cache.
const BLOCK: usize = 16 << 10;

/// Calls `each` with blocks of rows of a piece. The first argument is the number of the block's first row in the piece.
#[inline]
fn blocks<T>(values: &[T], features: usize, mut each: impl FnMut(usize, &[T])) {
    let rows = (BLOCK / (features * size_of::<T>())).max(1);
    for (i, block) in values.chunks(rows * features).enumerate() {
        each(i * rows, block);
    }
}

/// Calls `each` with pieces of contiguous rows. The first argument is the number of the piece's first row, counted from 0 at the
/// start of `range`.
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

/// Converts values to another floating-point type.
trait Convert: Checked {
    fn convert(row: &[Self], target: DType, out: &mut [u8]);
}

impl Convert for f32 {
    fn convert(row: &[f32], target: DType, out: &mut [u8]) {
        match target {
            DType::F16 => bytemuck::cast_slice_mut::<u8, f16>(out).convert_from_f32_slice(row),
            DType::BF16 => widely(|| map(row, bytemuck::cast_slice_mut(out), bf16_bits)),
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

/// Widens a component's row to `f32`. An error if the component holds integers.
pub(crate) fn widen(row: &[u8], component: usize, dtype: DType, out: &mut [f32]) -> Result<(), IndexError> {
    match dtype {
        DType::F32 => out.copy_from_slice(bytemuck::cast_slice(row)),
        DType::F16 => bytemuck::cast_slice::<u8, f16>(row).convert_to_f32_slice(out),
        DType::BF16 => map(bytemuck::cast_slice(row), out, bf16::to_f32),
        DType::U32 | DType::I64 => return Err(IndexError::Integers { component, dtype }),
    }
    Ok(())
}
