//! Copies rows into frames with streaming stores. One of the two files with `unsafe` (the other is `frame`).
//!
//! A row is written once and read again only after half a window of other rows, long after a cache would have dropped
//! it. Ordinary stores would first read the destination into the cache, and push out what is of use; streaming
//! (non-temporal) stores write whole lines past it. They are weakly ordered, so a fence must follow before another
//! thread may read: dropping the [`RowCopier`] issues it.

use std::sync::OnceLock;

use crate::layout::ALIGN;

type Kernel = unsafe fn(*mut u8, *const u8, usize);

/// Copies rows; what it has written may be read by other threads once it is dropped.
pub(crate) struct RowCopier {
    kernel: Option<Kernel>,
}

impl RowCopier {
    /// A copier with the widest streaming stores this processor has, or with ordinary stores if not `streaming`:
    /// better where the destination will still be in the cache when it is read.
    pub(crate) fn new(streaming: bool) -> Self {
        static BEST: OnceLock<Option<Kernel>> = OnceLock::new();
        let kernel = if streaming { *BEST.get_or_init(detect) } else { None };
        RowCopier { kernel }
    }

    /// Copies `row` to `slot`.
    ///
    /// # Panics
    /// Panics if they differ in length.
    #[inline]
    pub(crate) fn copy(&self, slot: &mut [u8], row: &[u8]) {
        assert_eq!(slot.len(), row.len(), "a row and its slot have the same width");
        match self.kernel {
            Some(kernel) if (slot.as_ptr() as usize | slot.len()).is_multiple_of(ALIGN) => {
                // SAFETY: both are `row.len()` bytes long, a multiple of 64; `slot` starts on a 64-byte boundary; they
                // cannot overlap, for `slot` is borrowed exclusively; `detect` made sure that the processor can run
                // the kernel.
                unsafe { kernel(slot.as_mut_ptr(), row.as_ptr(), row.len()) }
            }
            _ => slot.copy_from_slice(row),
        }
    }
}

impl Drop for RowCopier {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if self.kernel.is_some() {
            // SAFETY: SSE is part of x86-64.
            unsafe { std::arch::x86_64::_mm_sfence() }
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn detect() -> Option<Kernel> {
    if is_x86_feature_detected!("avx512f") {
        Some(x86::stream_512)
    } else if is_x86_feature_detected!("avx") {
        Some(x86::stream_256)
    } else {
        Some(x86::stream_128)
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn detect() -> Option<Kernel> {
    None
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_stream_si128, _mm256_loadu_si256, _mm256_stream_si256,
        _mm512_loadu_si512, _mm512_stream_si512,
    };

    /// Defines a copy of `len` bytes, a multiple of 64, to `to`, which is 64-byte aligned, with stores of one width.
    macro_rules! kernel {
        ($name:ident, $feature:literal, $vector:ty, $load:ident, $stream:ident) => {
            /// # Safety
            /// `to` and `from` are valid for `len` bytes and do not overlap, `to` is aligned to 64 bytes, `len` is a
            /// multiple of 64, and the processor has the target feature.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(to: *mut u8, from: *const u8, len: usize) {
                let mut at = 0;
                while at < len {
                    // SAFETY: `at + 64 <= len`, for both are multiples of 64; the rest is the caller's promise.
                    unsafe {
                        let mut line = 0;
                        while line < 64 {
                            let vector = $load(from.add(at + line).cast::<$vector>());
                            $stream(to.add(at + line).cast::<$vector>(), vector);
                            line += size_of::<$vector>();
                        }
                    }
                    at += 64;
                }
            }
        };
    }

    kernel!(stream_512, "avx512f", __m512i, _mm512_loadu_si512, _mm512_stream_si512);
    kernel!(stream_256, "avx", __m256i, _mm256_loadu_si256, _mm256_stream_si256);
    kernel!(stream_128, "sse2", __m128i, _mm_loadu_si128, _mm_stream_si128);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel this processor can run.
    fn kernels() -> Vec<Option<Kernel>> {
        #[allow(unused_mut)]
        let mut kernels = vec![None];
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            kernels.push(Some(x86::stream_128 as Kernel));
            if is_x86_feature_detected!("avx") {
                kernels.push(Some(x86::stream_256));
            }
            if is_x86_feature_detected!("avx512f") {
                kernels.push(Some(x86::stream_512));
            }
        }
        kernels
    }

    #[test]
    fn every_kernel_copies_exactly_the_row() {
        let source: Vec<u8> = (0..2048_u32).map(|i| (i * 31 % 251) as u8).collect();
        for kernel in kernels() {
            for len in [0, 1, 2, 63, 64, 65, 128, 192, 320, 1000, 1024] {
                for from in [0, 1, 7, 32] {
                    for to in [0, 64, 8, 33] {
                        let mut target = vec![0_u8; 2048 + ALIGN];
                        let aligned = target.as_ptr().align_offset(ALIGN);
                        let start = aligned + to;
                        RowCopier { kernel }.copy(&mut target[start..][..len], &source[from..][..len]);
                        assert_eq!(target[start..][..len], source[from..][..len]);
                        assert!(target[..start].iter().chain(&target[start + len..]).all(|&byte| byte == 0));
                    }
                }
            }
        }
    }
}
