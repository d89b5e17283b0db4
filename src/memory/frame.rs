//! Frames: each is the memory of one minibatch, or of several small ones. One of the files with `unsafe`.
//!
//! ```text
//! chunk  ┌───────── frame 0 ─────────┬───────── frame 1 ─────────┬─ …
//!        │ block 0 │ block 1 │ …     │ block 0 │ block 1 │ …     │
//!        └─────────┴─────────┴───────┴─────────┴─────────┴───────┴─ …
//!          block c: [rows, features of c], contiguous, starting on a 64-byte boundary
//! ```
//!
//! Frames are parts of chunks of about 8 MiB. So small frames also lie on huge pages, and a minibatch that a consumer keeps
//! pins little memory beyond its own. The operating system provides the pages of a chunk zeroed, and only when they are first
//! written to. So allocation takes little time, and the first write to a page waits until the operating system has zeroed it.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::memory::copy::{RowCopier, STREAMED};
use crate::memory::pages::map;
use crate::rows::build_error::BuildError;
use crate::rows::layout::Layout;

/// The size of a chunk, in bytes.
const CHUNK: usize = 8 << 20;

/// The most chunks of one allocation. Chunks become larger instead, because operating systems bound the number of mappings of a
/// process (Linux: 65,530).
const MOST_CHUNKS: usize = 8192;

/// The memory of `layout.rows()` rows of every component. Always initialised, at first with zeroes.
pub(crate) struct Frame {
    /// Initialised bytes that only this frame uses.
    memory: NonNull<[u8]>,
    layout: Arc<Layout>,
    /// The chunk that holds `memory`. It is unmapped when its last frame is dropped.
    _chunk: Arc<MmapMut>,
}

// SAFETY: a frame owns its bytes, which have no thread affinity.
unsafe impl Send for Frame {}
// SAFETY: a shared frame only gives shared access to its bytes.
unsafe impl Sync for Frame {}

impl Frame {
    /// Obtains `count` frames. Returns at once: the operating system provides the memory at the first write to it.
    pub(crate) fn allocate(layout: &Arc<Layout>, count: usize, what: &'static str) -> Result<Vec<Self>, BuildError> {
        let (rows, row_bytes) = (count.saturating_mul(layout.rows()), layout.bytes() / layout.rows().max(1));
        let overflow = || BuildError::Overflow { what, rows, row_bytes };
        let total =
            layout.bytes().checked_mul(count).filter(|&total| isize::try_from(total).is_ok()).ok_or_else(overflow)?;
        let refused = || BuildError::Allocation { what, bytes: total, rows, row_bytes };
        // Asks for all memory in one piece first, and gives it back. An operating system that overcommits refuses only a single
        // request that is too large.
        drop(map(total).ok_or_else(refused)?);
        let per_chunk = (CHUNK / layout.bytes()).max(count.div_ceil(MOST_CHUNKS)).max(1);
        let mut frames = Vec::with_capacity(count);
        while frames.len() < count {
            let used = per_chunk.min(count - frames.len()) * layout.bytes();
            let (mut chunk, start) = map(used).ok_or_else(refused)?;
            let parts = chunk[start..][..used].chunks_exact_mut(layout.bytes());
            let parts: Vec<NonNull<[u8]>> = parts.map(NonNull::from).collect();
            let chunk = Arc::new(chunk);
            let frame = |memory| Frame { memory, layout: layout.clone(), _chunk: chunk.clone() };
            frames.extend(parts.into_iter().map(frame));
        }
        Ok(frames)
    }

    /// Obtains one frame, in memory of its own.
    pub(crate) fn allocate_one(layout: &Arc<Layout>, what: &'static str) -> Result<Self, BuildError> {
        Ok(Self::allocate(layout, 1, what)?.swap_remove(0))
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Fills the first `rows` slots. `source(component)` returns a function from a slot to the component's row for that slot.
    pub(crate) fn gather<'a, R: FnMut(usize) -> &'a [u8]>(&mut self, rows: usize, source: impl Fn(usize) -> R) {
        let bytes: usize =
            (0..self.layout.n_components()).map(|component| rows * self.layout.row_bytes(component)).sum();
        let copier = RowCopier::new(bytes >= STREAMED);
        for component in 0..self.layout.n_components() {
            let width = self.layout.row_bytes(component);
            copier.gather(self.rows_mut(component, rows), width, source(component));
        }
    }

    /// Where the frame's memory starts. The frame's parts use this.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.memory.cast()
    }

    /// The bytes of every component, block after block.
    fn all(&self) -> &[u8] {
        // SAFETY: `allocate` gives each frame a part of its own of a mapped, zeroed chunk, which the frame keeps mapped.
        unsafe { self.memory.as_ref() }
    }

    /// The bytes of every component, block after block.
    #[inline]
    pub(crate) fn all_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `all`, and `&mut self` makes the access exclusive.
        unsafe { self.memory.as_mut() }
    }

    /// The first `rows` rows of a component.
    pub(crate) fn rows(&self, component: usize, rows: usize) -> &[u8] {
        let start = self.layout.offset(component);
        &self.all()[start..][..rows * self.layout.row_bytes(component)]
    }

    /// The first `rows` rows of a component.
    pub(crate) fn rows_mut(&mut self, component: usize, rows: usize) -> &mut [u8] {
        let (start, len) = (self.layout.offset(component), rows * self.layout.row_bytes(component));
        &mut self.all_mut()[start..][..len]
    }

    /// Returns a function from a slot to the row of a component. For many rows it is faster than [`row`](Self::row).
    pub(crate) fn rows_of<'a>(&'a self, component: usize) -> impl Fn(usize) -> &'a [u8] + 'a {
        let (rows, width) = (self.rows(component, self.layout.rows()), self.layout.row_bytes(component));
        move |slot| &rows[slot * width..][..width]
    }

    /// The row of a component in a slot.
    pub(crate) fn row(&self, component: usize, slot: usize) -> &[u8] {
        let width = self.layout.row_bytes(component);
        &self.rows(component, self.layout.rows())[slot * width..][..width]
    }

    /// The row of a component in a slot.
    pub(crate) fn row_mut(&mut self, component: usize, slot: usize) -> &mut [u8] {
        let width = self.layout.row_bytes(component);
        let rows = self.layout.rows();
        &mut self.rows_mut(component, rows)[slot * width..][..width]
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} rows, {} bytes)", self.layout.rows(), self.layout.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::element::DType;
    use crate::rows::layout::{ALIGN, Component};

    fn layout(features: usize, rows: usize) -> Arc<Layout> {
        let component = |name: &str, features, dtype| Component { name: name.into(), features, dtype };
        Arc::new(Layout::new(&[component("a", features, DType::F32), component("b", 3, DType::F16)], rows).unwrap())
    }

    #[test]
    fn frames_are_zeroed_aligned_and_disjoint() {
        let layout = layout(5, 7);
        let mut frames = Frame::allocate(&layout, 9, "test").unwrap();
        assert_eq!(frames.len(), 9);
        for (i, frame) in frames.iter_mut().enumerate() {
            assert!(frame.all().iter().all(|&byte| byte == 0));
            assert_eq!(frame.all().len(), layout.bytes());
            for component in 0..2 {
                assert_eq!(frame.rows(component, 7).as_ptr() as usize % ALIGN, 0);
                for slot in 0..7 {
                    frame.row_mut(component, slot).fill(i as u8 + 1);
                }
            }
        }
        let kept = frames.swap_remove(4);
        for (i, frame) in [0, 1, 2, 3, 8, 5, 6, 7].into_iter().zip(&frames) {
            assert!((0..2).all(|component| frame.rows(component, 7).iter().all(|&byte| byte == i as u8 + 1)));
        }
        drop(frames);
        assert!(kept.row(1, 6).iter().all(|&byte| byte == 5));
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks for more memory than Miri has")]
    fn impossible_sizes_are_refused() {
        let layout = layout(1 << 20, 1 << 20);
        assert!(matches!(Frame::allocate(&layout, 1 << 30, "test"), Err(BuildError::Overflow { .. })));
        assert!(matches!(Frame::allocate(&layout, 1 << 10, "test"), Err(BuildError::Allocation { .. })));
    }

    /// Which of the frame's pages are in memory, if the operating system says.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn present(frame: &Frame) -> Option<Vec<bool>> {
        use std::os::unix::fs::FileExt;
        const PAGE: usize = 4 << 10;
        let pagemap = std::fs::File::open("/proc/self/pagemap").ok()?;
        let pages = frame.all().as_ptr() as usize / PAGE..(frame.all().as_ptr_range().end as usize).div_ceil(PAGE);
        let mut entries = vec![0_u8; pages.len() * 8];
        pagemap.read_exact_at(&mut entries, pages.start as u64 * 8).ok()?;
        Some(entries.chunks_exact(8).map(|entry| entry[7] & 0x80 != 0).collect())
    }

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[cfg_attr(miri, ignore = "Miri has no pages")]
    fn memory_comes_when_it_is_written_to() {
        // Two to a chunk, on huge pages; and some to a page.
        for layout in [layout(900, 1000), layout(5, 7)] {
            let mut frames = Frame::allocate(&layout, 5, "test").unwrap();
            let Some(before) = present(&frames[4]) else {
                eprintln!("skipped: /proc/self/pagemap cannot be read here");
                return;
            };
            assert!(!before.contains(&true), "{before:?}");
            frames[4].all_mut().fill(1);
            let after = present(&frames[4]).unwrap();
            assert!(!after.contains(&false), "{after:?}");
        }
    }
}
