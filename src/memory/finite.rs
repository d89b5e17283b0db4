//! Finds rows with values that are not finite, or that become infinite in the component's element type.
//!
//! Without its sign bit, a floating-point value orders as its bits do: a larger value has larger bits, infinity has the largest but for NaN.
//! So one maximum over the bits of many rows says whether any of them needs a closer look. Few rows do.

use half::{bf16, f16};

use crate::memory::widely::widely;
use crate::rows::element::{DType, Element};
use crate::rows::layout::ALIGN;
use crate::rows::values::ValueCounts;

/// Looks at the bytes of rows while they are copied.
pub(crate) trait Watch: Default {
    /// Looks at a cache line.
    fn line(&mut self, line: &[u8; ALIGN]);

    /// Looks at a row.
    fn row(&mut self, row: &[u8]);
}

/// Looks at nothing: for integers, and for rows that were looked at before.
#[derive(Default)]
pub(crate) struct Unwatched;

impl Watch for Unwatched {
    #[inline(always)]
    fn line(&mut self, _: &[u8; ALIGN]) {}

    #[inline(always)]
    fn row(&mut self, _: &[u8]) {}
}

/// Finds the largest magnitude among values of one size. It keeps a maximum for each place in a cache line, so that the compiler uses
/// vectors.
macro_rules! largest {
    ($name:ident, $bits:ty) => {
        #[derive(Default)]
        pub(crate) struct $name([$bits; ALIGN / size_of::<$bits>()]);

        impl Watch for $name {
            #[inline(always)]
            fn line(&mut self, line: &[u8; ALIGN]) {
                for (largest, value) in self.0.iter_mut().zip(line.as_chunks().0) {
                    *largest = (*largest).max(<$bits>::from_ne_bytes(*value) & (<$bits>::MAX >> 1));
                }
            }

            #[inline(always)]
            fn row(&mut self, row: &[u8]) {
                let (lines, rest) = row.as_chunks::<ALIGN>();
                lines.iter().for_each(|line| self.line(line));
                if !rest.is_empty() {
                    // A loop over part of the maxima would keep the compiler from holding them in vectors.
                    let mut line = [0; ALIGN];
                    line[..rest.len()].copy_from_slice(rest);
                    self.line(&line);
                }
            }
        }

        impl $name {
            /// The largest magnitude, as bits.
            pub(crate) fn magnitude(&self) -> u32 {
                self.0.iter().fold(0, |largest, &bits| largest.max(bits)).into()
            }
        }
    };
}

largest!(Largest16, u16);
largest!(Largest32, u32);

/// An element type whose values are looked at. Integers are not.
pub(crate) trait Checked: Element {
    /// What watches rows of this type.
    type Watch: Watch;

    /// The largest magnitude that the watch has seen.
    fn magnitude_seen(watch: &Self::Watch) -> u32;

    /// The bits of a value without the sign.
    fn magnitude(self) -> u32;

    /// The magnitude of infinity. NaN has larger ones.
    const INFINITE: u32;

    /// The smallest magnitude that becomes infinite in another type.
    fn overflows(target: DType) -> u32;
}

impl Checked for f32 {
    type Watch = Largest32;

    fn magnitude_seen(watch: &Largest32) -> u32 {
        watch.magnitude()
    }

    #[inline(always)]
    fn magnitude(self) -> u32 {
        self.to_bits() & 0x7fff_ffff
    }

    const INFINITE: u32 = 0x7f80_0000;

    fn overflows(target: DType) -> u32 {
        match target {
            // Halfway between the largest value and the next one that the type would have. Ties go to the even one, which is infinite.
            DType::F16 => 65_520_f32.to_bits(),
            DType::BF16 => 0x7f7f_8000,
            _ => Self::INFINITE,
        }
    }
}

impl Checked for f16 {
    type Watch = Largest16;

    fn magnitude_seen(watch: &Largest16) -> u32 {
        watch.magnitude()
    }

    #[inline(always)]
    fn magnitude(self) -> u32 {
        u32::from(self.to_bits() & 0x7fff)
    }

    const INFINITE: u32 = 0x7c00;

    fn overflows(_: DType) -> u32 {
        Self::INFINITE
    }
}

impl Checked for bf16 {
    type Watch = Largest16;

    fn magnitude_seen(watch: &Largest16) -> u32 {
        watch.magnitude()
    }

    #[inline(always)]
    fn magnitude(self) -> u32 {
        u32::from(self.to_bits() & 0x7fff)
    }

    const INFINITE: u32 = 0x7f80;

    fn overflows(target: DType) -> u32 {
        // 65,536 is the next value after 65,280.
        if target == DType::F16 { u32::from(bf16::from_f32_const(65_536.0).to_bits()) } else { Self::INFINITE }
    }
}

macro_rules! unchecked {
    ($type:ty) => {
        impl Checked for $type {
            type Watch = Unwatched;

            fn magnitude_seen(_: &Unwatched) -> u32 {
                0
            }

            #[inline(always)]
            fn magnitude(self) -> u32 {
                0
            }

            const INFINITE: u32 = u32::MAX;

            fn overflows(_: DType) -> u32 {
                u32::MAX
            }
        }
    };
}

unchecked!(u32);
unchecked!(i64);

/// Looks at rows of `features` values before they are converted to `target`.
pub(crate) fn check<T: Checked>(values: &[T], features: usize, target: DType) -> ValueCounts {
    let largest = widely(|| {
        let mut watch = T::Watch::default();
        watch.row(bytemuck::cast_slice(values));
        watch
    });
    count(values, features, target, &largest)
}

/// Counts the rows of `features` values that are not finite, or become infinite in `target`. `largest` has watched these rows.
#[inline]
pub(crate) fn count<T: Checked>(values: &[T], features: usize, target: DType, largest: &T::Watch) -> ValueCounts {
    if T::magnitude_seen(largest) < T::overflows(target) {
        return ValueCounts::default();
    }
    look_closely(values, features, T::overflows(target))
}

#[cold]
fn look_closely<T: Checked>(values: &[T], features: usize, overflows: u32) -> ValueCounts {
    let mut counts = ValueCounts::default();
    widely(|| {
        for row in values.chunks_exact(features) {
            let (mut overflowed, mut not_finite) = (false, false);
            for value in row {
                let magnitude = value.magnitude();
                not_finite |= magnitude >= T::INFINITE;
                overflowed |= magnitude >= overflows && magnitude < T::INFINITE;
            }
            counts.overflowed += u64::from(overflowed);
            counts.not_finite += u64::from(not_finite);
        }
    });
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts by converting each value.
    fn expected<T: Checked>(values: &[T], features: usize, converted: impl Fn(f32) -> f32) -> ValueCounts {
        let mut counts = ValueCounts::default();
        for row in values.chunks(features) {
            let row: Vec<f32> = row.iter().map(|&value| value.nearest_f32()).collect();
            counts.not_finite += u64::from(row.iter().any(|x| !x.is_finite()));
            counts.overflowed += u64::from(row.iter().any(|&x| x.is_finite() && !converted(x).is_finite()));
        }
        counts
    }

    fn compare<T: Checked>(values: &[T]) {
        for features in [1, 3, 16, 33, 64, 100] {
            let values = &values[..values.len() / features * features];
            for (target, converted) in [
                (DType::F32, (|x| x) as fn(f32) -> f32),
                (DType::F16, |x| f16::from_f32(x).to_f32()),
                (DType::BF16, |x| bf16::from_f32(x).to_f32()),
            ] {
                let counts = check(values, features, target);
                assert_eq!(counts, expected(values, features, converted), "{features} x {} to {target}", T::DTYPE);
            }
        }
    }

    #[test]
    fn rows_are_counted_as_conversion_finds_them() {
        let edges = [
            65_504.0,
            65_519.0,
            65_519.996,
            65_520.0,
            65_535.0,
            65_536.0,
            f32::MAX,
            f32::from_bits(0x7f7f_7fff),
            f32::from_bits(0x7f7f_8000),
            f32::INFINITY,
            f32::NAN,
            f32::from_bits(0x7f80_0001),
            f32::MIN_POSITIVE,
            0.0,
        ];
        let edges: Vec<f32> = edges.iter().flat_map(|&x| [x, -x]).collect();
        let mut values: Vec<f32> = Vec::new();
        for (i, &edge) in edges.iter().enumerate() {
            let between = if cfg!(miri) { 1 + i % 3 } else { 113 + i }; // Miri is slow
            values.extend((0..between).map(|j| j as f32 - 50.0));
            values.push(edge);
        }
        compare(&values);
        compare(&edges);
        compare(&values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>());
        compare(&values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    }

    #[test]
    fn integers_are_never_counted() {
        assert_eq!(check(&[u32::MAX; 8], 2, DType::U32), ValueCounts::default());
        assert_eq!(check(&[i64::MIN; 8], 2, DType::I64), ValueCounts::default());
    }
}
