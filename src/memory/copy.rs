//! Copies rows into frames, or gathers rows from frames, with streaming stores. One of the files with `unsafe`.
//!
//! The writer writes a row once. The row is read only after half a window of other rows, when no cache would still hold it.
//! Ordinary stores would first read the destination into the cache, and would push out useful data. Streaming (non-temporal)
//! stores write whole lines past the cache. Streaming stores are weakly ordered, so a fence must follow before another thread
//! may read the rows. Dropping the [`RowCopier`] issues the fence.

use crate::memory::finite::{Unwatched, Watch};
use crate::memory::widely::widely;
use crate::rows::layout::ALIGN;

/// The fewest bytes that are gathered past the cache. Fewer bytes may still be in the cache when they are read.
pub(crate) const STREAMED: usize = 256 << 10;

/// Where rows are copied to.
pub(crate) trait Slots {
    /// The memory for the `i`-th row.
    fn slot(&mut self, i: usize) -> &mut [u8];
}

/// Rows that follow one another in memory, and the slot of each row.
struct Scattered<'a, 'r, S> {
    rows: &'r [u8],
    width: usize,
    slots: &'a mut S,
}

/// Rows that lie anywhere in memory, and slots that follow one another.
struct Gathered<'a, F> {
    row: F,
    into: &'a mut [u8],
    width: usize,
    count: usize,
    /// The row that is fetched comes so many rows after the row that is copied.
    ahead: usize,
}

/// The bytes of a row that are fetched ahead. The processor itself fetches the rest of a longer row.
const FETCHED: usize = 24 * ALIGN;

/// The bytes that are being fetched while a row is copied: about as many as one core can wait for.
const ON_THE_WAY: usize = 8 * FETCHED;

/// Pairs of a row and the slot that it is copied to.
trait Pairs<'r> {
    fn pair(&mut self, i: usize) -> (&'r [u8], &mut [u8]);
}

impl<'r, S: Slots> Pairs<'r> for Scattered<'_, 'r, S> {
    #[inline(always)]
    fn pair(&mut self, i: usize) -> (&'r [u8], &mut [u8]) {
        (&self.rows[i * self.width..][..self.width], self.slots.slot(i))
    }
}

impl<'r, F: FnMut(usize) -> &'r [u8]> Pairs<'r> for Gathered<'_, F> {
    #[inline(always)]
    fn pair(&mut self, i: usize) -> (&'r [u8], &mut [u8]) {
        if i + self.ahead < self.count {
            fetch((self.row)(i + self.ahead));
        }
        ((self.row)(i), &mut self.into[i * self.width..][..self.width])
    }
}

/// Copies rows. Other threads may read the copies once the copier is dropped.
pub(crate) struct RowCopier {
    kernel: Kernel,
}

/// The kind of stores that write a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Ordinary,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Stream128,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Stream256,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Stream512,
}

impl RowCopier {
    /// Makes a copier with the widest streaming stores of this processor or, if not `streaming`, with ordinary stores. Ordinary
    /// stores are better if the destination will still be in the cache when it is read.
    pub(crate) fn new(streaming: bool) -> Self {
        RowCopier { kernel: if streaming { widest() } else { Kernel::Ordinary } }
    }

    /// Whether the copier writes past the cache.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(crate) fn streams(&self) -> bool {
        self.kernel != Kernel::Ordinary
    }

    /// Copies `rows`, of `width` bytes each, to their slots.
    ///
    /// # Panics
    /// Panics if a slot is not `width` bytes long.
    pub(crate) fn copy(&self, rows: &[u8], width: usize, slots: &mut impl Slots) {
        self.copy_watched::<Unwatched>(rows, width, slots);
    }

    /// Copies rows as [`copy`](Self::copy) does, and returns what the watch has seen of their values. The watch looks at values that the
    /// copy has read anyway.
    pub(crate) fn copy_watched<W: Watch>(&self, rows: &[u8], width: usize, slots: &mut impl Slots) -> W {
        self.run(rows.len() / width, &mut Scattered { rows, width, slots })
    }

    /// Fills `into` with rows of `width` bytes: the `i`-th is a copy of `row(i)`.
    ///
    /// # Panics
    /// Panics if a row is not `width` bytes long.
    pub(crate) fn gather<'r>(&self, into: &mut [u8], width: usize, row: impl FnMut(usize) -> &'r [u8]) {
        let count = into.len() / width;
        let ahead = ON_THE_WAY / width.clamp(ALIGN, FETCHED);
        let Unwatched = self.run(count, &mut Gathered { row, into, width, count, ahead });
    }

    fn run<'r, W: Watch>(&self, count: usize, pairs: &mut impl Pairs<'r>) -> W {
        match self.kernel {
            Kernel::Ordinary => widely(|| ordinary(count, pairs)),
            // SAFETY: a copier has this kernel only if `widest` has found that the processor can run it.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kernel::Stream128 => unsafe { x86::stream_128(count, pairs) },
            // SAFETY: as above.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kernel::Stream256 => unsafe { x86::stream_256(count, pairs) },
            // SAFETY: as above.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kernel::Stream512 => unsafe { x86::stream_512(count, pairs) },
        }
    }
}

impl Drop for RowCopier {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if self.streams() {
            // SAFETY: SSE is part of x86-64.
            unsafe { std::arch::x86_64::_mm_sfence() }
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn widest() -> Kernel {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        Kernel::Stream512
    } else if is_x86_feature_detected!("avx2") {
        Kernel::Stream256
    } else {
        Kernel::Stream128
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn widest() -> Kernel {
    Kernel::Ordinary
}

/// Tells the processor that a row will be read soon.
#[inline(always)]
fn fetch(row: &[u8]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for at in (0..row.len().min(FETCHED)).step_by(ALIGN) {
        // SAFETY: fetching reads no memory that the program sees; SSE is part of x86-64.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(row.as_ptr().add(at).cast()) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = row;
}

#[inline(always)]
fn ordinary<'r, W: Watch>(count: usize, pairs: &mut impl Pairs<'r>) -> W {
    let mut watch = W::default();
    for i in 0..count {
        let (row, slot) = pairs.pair(i);
        watch.row(row);
        slot.copy_from_slice(row);
    }
    watch
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_stream_si128, _mm256_loadu_si256, _mm256_stream_si256,
        _mm512_loadu_si512, _mm512_stream_si512,
    };

    use super::Pairs;
    use crate::memory::finite::Watch;
    use crate::rows::layout::ALIGN;

    /// Defines a copy of rows with streaming stores of one width. The function contains the loop over the rows, because the
    /// compiler does not inline a function with a target feature into a caller without it. A call for each row would cost as
    /// much as a narrow row.
    macro_rules! kernel {
        ($name:ident, $feature:literal, $vector:ty, $load:ident, $stream:ident) => {
            /// # Safety
            /// The processor must have the target feature.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name<'r, W: Watch>(count: usize, pairs: &mut impl Pairs<'r>) -> W {
                let mut watch = W::default();
                for i in 0..count {
                    let (row, slot) = pairs.pair(i);
                    assert_eq!(slot.len(), row.len(), "a row and its slot have the same width");
                    if !(slot.as_ptr() as usize | slot.len()).is_multiple_of(ALIGN) {
                        watch.row(row);
                        slot.copy_from_slice(row);
                        continue;
                    }
                    let lines = slot.as_chunks_mut::<ALIGN>().0.iter_mut().zip(row.as_chunks::<ALIGN>().0);
                    for (to, from) in lines {
                        watch.line(from);
                        let mut at = 0;
                        while at < ALIGN {
                            // SAFETY: both lines are 64 bytes long and a vector's size divides that; `to` is a whole
                            // line of `slot`, which starts on a 64-byte boundary, so the store is aligned.
                            unsafe {
                                let vector = $load(from.as_ptr().add(at).cast::<$vector>());
                                $stream(to.as_mut_ptr().add(at).cast::<$vector>(), vector);
                            }
                            at += size_of::<$vector>();
                        }
                    }
                }
                watch
            }
        };
    }

    kernel!(stream_512, "avx512f,avx512bw", __m512i, _mm512_loadu_si512, _mm512_stream_si512);
    kernel!(stream_256, "avx2", __m256i, _mm256_loadu_si256, _mm256_stream_si256);
    kernel!(stream_128, "sse2", __m128i, _mm_loadu_si128, _mm_stream_si128);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel this processor can run.
    fn kernels() -> Vec<Kernel> {
        #[allow(unused_mut)]
        let mut kernels = vec![Kernel::Ordinary];
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            kernels.push(Kernel::Stream128);
            if is_x86_feature_detected!("avx2") {
                kernels.push(Kernel::Stream256);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                kernels.push(Kernel::Stream512);
            }
        }
        kernels
    }

    /// Slots of `width` bytes from `start` on, the first row's last.
    struct Backwards<'a> {
        target: &'a mut [u8],
        start: usize,
        width: usize,
        rows: usize,
    }

    impl Slots for Backwards<'_> {
        fn slot(&mut self, i: usize) -> &mut [u8] {
            &mut self.target[self.start + (self.rows - 1 - i) * self.width..][..self.width]
        }
    }

    #[test]
    fn every_kernel_copies_exactly_the_rows() {
        let source: Vec<u8> = (0..4096_u32).map(|i| (i * 31 % 251) as u8).collect();
        let rows = 3;
        for kernel in kernels() {
            // Miri takes long.
            let widths: &[usize] =
                if cfg!(miri) { &[1, 64, 65] } else { &[1, 2, 63, 64, 65, 128, 192, 320, 1000, 1024] };
            for &width in widths {
                for from in [0, 1, 7, 32] {
                    for to in [0, 64, 8, 33] {
                        let mut target = vec![0_u8; to + rows * width + 2 * ALIGN];
                        let start = target.as_ptr().align_offset(ALIGN) + to;
                        let copied = &source[from..][..rows * width];
                        let mut slots = Backwards { target: &mut target, start, width, rows };
                        RowCopier { kernel }.copy(copied, width, &mut slots);
                        let (before, rest) = target.split_at(start);
                        let (written, after) = rest.split_at(rows * width);
                        assert!(written.chunks_exact(width).eq(copied.rchunks_exact(width)));
                        assert!(before.iter().chain(after).all(|&byte| byte == 0));
                    }
                }
            }
        }
    }

    #[test]
    fn every_kernel_gathers_exactly_the_rows() {
        let source: Vec<u8> = (0..16 << 10).map(|i: u32| (i * 31 % 251) as u8).collect();
        for kernel in kernels() {
            let widths: &[usize] = if cfg!(miri) { &[1, 64] } else { &[1, 63, 64, 320, 1024, 1600, 2000] };
            for &width in widths {
                // More rows than are fetched ahead, unless they are narrow.
                let (count, stored) = (40, source.len() / width);
                let row = |i: usize| &source[i * 17 % stored * width..][..width];
                for to in [0, 8] {
                    let mut target = vec![0_u8; count * width + 2 * ALIGN];
                    let start = target.as_ptr().align_offset(ALIGN) + to;
                    RowCopier { kernel }.gather(&mut target[start..][..count * width], width, row);
                    assert!(target[start..].chunks_exact(width).take(count).eq((0..count).map(row)));
                    assert!(target[..start].iter().chain(&target[start + count * width..]).all(|&byte| byte == 0));
                }
            }
        }
    }
}
