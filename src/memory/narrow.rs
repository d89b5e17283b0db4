//! Converts f32 rows to bf16 straight into their slots. One of the files with `unsafe`.
//!
//! The kernels read the rows once and write half as many bytes, with streaming stores as in `copy`. A conversion into a buffer,
//! and then a copy from the buffer, took longer than a copy of the rows without conversion.

use crate::memory::copy::{RowCopier, Slots};
use crate::memory::finite::{Largest32, Watch};
use crate::memory::widely::widely;

/// The bits of the nearest bf16. Ties go to the even value, and NaN stays NaN. The result equals `half::bf16::from_f32`, but this
/// code has no branch, so the compiler can convert many values at once.
#[inline]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet_nan } else { rounded }) as u16
}

impl RowCopier {
    /// Copies rows of `features` values each to their slots, as bf16. Returns the largest value.
    ///
    /// # Panics
    /// Panics if the size of a slot differs from the size of a row in bf16.
    pub(crate) fn copy_as_bf16(&self, values: &[f32], features: usize, slots: &mut impl Slots) -> Largest32 {
        let rows = values.chunks_exact(features).enumerate();
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if self.streams() && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has both.
            return unsafe { x86::stream_512(rows, slots) };
        } else if self.streams() && is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { x86::stream_256(rows, slots) };
        }
        widely(|| {
            let mut largest = Largest32::default();
            rows.for_each(|(i, row)| ordinary(row, slots.slot(i), &mut largest));
            largest
        })
    }
}

#[inline(always)]
fn ordinary(row: &[f32], slot: &mut [u8], largest: &mut Largest32) {
    assert_eq!(slot.len(), size_of_val(row) / 2, "a slot has the size of a row");
    largest.row(bytemuck::cast_slice(row));
    for (to, &x) in slot.as_chunks_mut().0.iter_mut().zip(row) {
        *to = bf16_bits(x).to_ne_bytes();
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_loadu_si256, _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512,
    };

    use super::{Slots, bf16_bits, ordinary};
    use crate::memory::finite::{Largest32, Watch};
    use crate::rows::layout::ALIGN;

    /// The number of bf16 values in a cache line.
    const VALUES: usize = ALIGN / size_of::<u16>();

    /// Defines a copy with streaming stores of one width. The function contains the loop over the rows, as in `copy`.
    macro_rules! kernel {
        ($name:ident, $feature:literal, $vector:ty, $load:ident, $stream:ident) => {
            /// # Safety
            /// The processor must have the target features.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name<'r>(
                rows: impl Iterator<Item = (usize, &'r [f32])>,
                slots: &mut impl Slots,
            ) -> Largest32 {
                let mut largest = Largest32::default();
                for (i, row) in rows {
                    let slot = slots.slot(i);
                    if !(slot.as_ptr() as usize | slot.len()).is_multiple_of(ALIGN) {
                        ordinary(row, slot, &mut largest);
                        continue;
                    }
                    assert_eq!(slot.len(), size_of_val(row) / 2, "a slot has the size of a row");
                    for (to, from) in slot.as_chunks_mut::<ALIGN>().0.iter_mut().zip(row.as_chunks::<VALUES>().0) {
                        bytemuck::cast_slice::<f32, [u8; ALIGN]>(from).iter().for_each(|line| largest.line(line));
                        let line: [u16; VALUES] = std::array::from_fn(|value| bf16_bits(from[value]));
                        let mut at = 0;
                        while at < ALIGN {
                            // SAFETY: both lines are 64 bytes long and a vector's size divides that; `to` is a whole
                            // line of `slot`, which starts on a 64-byte boundary, so the store is aligned.
                            unsafe {
                                let vector = $load(line.as_ptr().cast::<u8>().add(at).cast::<$vector>());
                                $stream(to.as_mut_ptr().add(at).cast::<$vector>(), vector);
                            }
                            at += size_of::<$vector>();
                        }
                    }
                }
                largest
            }
        };
    }

    kernel!(stream_512, "avx512f,avx512bw", __m512i, _mm512_loadu_si512, _mm512_stream_si512);
    kernel!(stream_256, "avx2", __m256i, _mm256_loadu_si256, _mm256_stream_si256);
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::rows::layout::ALIGN;

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
        for x in bits.map(f32::from_bits) {
            assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x} ({:#x})", x.to_bits());
        }
    }

    /// Slots of `width` bytes one after the other.
    struct InTurn<'a>(&'a mut [u8], usize);

    impl Slots for InTurn<'_> {
        fn slot(&mut self, i: usize) -> &mut [u8] {
            &mut self.0[i * self.1..][..self.1]
        }
    }

    #[test]
    fn exactly_the_rows_are_converted() {
        let rows = 3;
        let values: Vec<f32> = (0..rows * 200).map(|i| i as f32 * 1.37 - 300.0).collect();
        for features in [1, 31, 32, 33, 96, 200] {
            let (values, width) = (&values[..rows * features], 2 * features);
            for (to, streaming) in [(0, false), (0, true), (8, true)] {
                let mut target = vec![0_u8; rows * width + 2 * ALIGN];
                let start = target.as_ptr().align_offset(ALIGN) + to;
                let mut slots = InTurn(&mut target[start..][..rows * width], width);
                RowCopier::new(streaming).copy_as_bf16(values, features, &mut slots);
                let expected: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect();
                assert_eq!(target[start..][..rows * width], expected);
                assert!(target[..start].iter().chain(&target[start + rows * width..]).all(|&byte| byte == 0));
            }
        }
    }
}
