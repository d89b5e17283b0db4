//! The memory of one minibatch. One of the two files with `unsafe` (the other is `copy`).
//!
//! ```text
//! chunk  ┌───────── frame 0 ─────────┬───────── frame 1 ─────────┬─ …
//!        │ block 0 │ block 1 │ …     │ block 0 │ block 1 │ …     │
//!        └─────────┴─────────┴───────┴─────────┴─────────┴───────┴─ …
//!          block c: [rows, features of c], contiguous, starting on a 64-byte boundary
//! ```
//!
//! Frames are carved from chunks of about 8 MiB so that small frames too lie on huge pages, while a minibatch that the
//! consumer keeps pins little memory beyond its own.

use std::alloc::{self, Layout as Memory};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::BuildError;
use crate::rows::layout::{ALIGN, Layout};

const CHUNK: usize = 8 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Memory of several frames, freed with the last of them.
struct Chunk {
    start: NonNull<u8>,
    memory: Memory,
}

// SAFETY: a chunk is plain memory without thread affinity; it is only ever touched through the frames carved from it.
unsafe impl Send for Chunk {}
// SAFETY: as above; a shared `Chunk` gives no access to the memory.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn allocate(bytes: usize) -> Option<Chunk> {
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGN };
        let memory = Memory::from_size_align(bytes, align).ok().filter(|memory| memory.size() > 0)?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc::alloc(memory) })?;
        advise_huge_pages(start, memory);
        Some(Chunk { start, memory })
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` with this layout, and no frame is left to use it.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.memory) }
    }
}

/// Fewer TLB misses for the writer, which writes to many frames in turn. Advice only: failing costs speed, not correctness.
#[cfg(all(target_os = "linux", not(miri)))]
fn advise_huge_pages(start: NonNull<u8>, memory: Memory) {
    if memory.align() >= HUGE_PAGE {
        // SAFETY: the range is an allocation of ours, and the advice does not change what it holds.
        unsafe { libc::madvise(start.as_ptr().cast(), memory.size(), libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise_huge_pages(_: NonNull<u8>, _: Memory) {}

/// Memory that has been obtained but not touched yet: first-touch page faults are dear, so the thread that will use
/// the frames pays for them, once, through [`Reserved::touch`].
pub(crate) struct Reserved {
    layout: Arc<Layout>,
    chunks: Vec<(Chunk, usize)>,
}

impl Reserved {
    /// Obtains memory for `count` frames.
    pub(crate) fn new(layout: &Arc<Layout>, count: usize, what: &'static str) -> Result<Self, BuildError> {
        let (rows, row_bytes) = (count.saturating_mul(layout.rows()), layout.bytes() / layout.rows().max(1));
        let overflow = || BuildError::Overflow { what, rows, row_bytes };
        let total =
            layout.bytes().checked_mul(count).filter(|&total| isize::try_from(total).is_ok()).ok_or_else(overflow)?;
        let refused = || BuildError::Allocation { what, bytes: total, rows, row_bytes };
        // Asked for in one piece first: an operating system that overcommits refuses only single requests that are too large.
        drop(Chunk::allocate(total).ok_or_else(refused)?);
        let per_chunk = (CHUNK / layout.bytes()).max(1);
        let mut chunks = Vec::with_capacity(count.div_ceil(per_chunk));
        let mut left = count;
        while left > 0 {
            let frames = left.min(per_chunk);
            chunks.push((Chunk::allocate(frames * layout.bytes()).ok_or_else(refused)?, frames));
            left -= frames;
        }
        Ok(Reserved { layout: layout.clone(), chunks })
    }

    /// Zeroes the memory, which also makes the operating system provide it.
    pub(crate) fn touch(self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for (chunk, count) in self.chunks {
            // SAFETY: the chunk is `memory.size()` bytes long, and nothing else refers to it yet.
            unsafe { chunk.start.as_ptr().write_bytes(0, chunk.memory.size()) };
            let chunk = Arc::new(chunk);
            for i in 0..count {
                // SAFETY: the chunk was sized for `count` frames, so the frame's start is within it.
                let start = unsafe { chunk.start.add(i * self.layout.bytes()) };
                frames.push(Frame {
                    start,
                    len: self.layout.bytes(),
                    layout: self.layout.clone(),
                    _chunk: chunk.clone(),
                });
            }
        }
        frames
    }
}

/// The memory of one minibatch: `layout.rows()` rows of every component. Always initialised.
pub(crate) struct Frame {
    /// Start of `len` initialised bytes that this frame alone uses.
    start: NonNull<u8>,
    /// `layout.bytes()`; here too, for the writer asks for it with every row.
    len: usize,
    layout: Arc<Layout>,
    _chunk: Arc<Chunk>,
}

// SAFETY: a frame owns its bytes, which have no thread affinity.
unsafe impl Send for Frame {}
// SAFETY: a shared frame only gives shared access to its bytes.
unsafe impl Sync for Frame {}

impl Frame {
    /// A frame in memory of its own.
    pub(crate) fn allocate(layout: &Arc<Layout>, what: &'static str) -> Result<Self, BuildError> {
        Ok(Reserved::new(layout, 1, what)?.touch().remove(0))
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Fills the first `rows` slots, each with the row of the frame and slot that `source` names.
    pub(crate) fn gather<'a>(&mut self, rows: usize, source: impl Fn(usize) -> (&'a Frame, usize)) {
        for component in 0..self.layout.n_components() {
            for slot in 0..rows {
                let (frame, from) = source(slot);
                self.row_mut(component, slot).copy_from_slice(frame.row(component, from));
            }
        }
    }

    /// Every component, block after block.
    pub(crate) fn all(&self) -> &[u8] {
        // SAFETY: `start` is the start of `len` initialised bytes that only this frame uses (see `Reserved::touch`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Every component, block after block.
    #[inline]
    pub(crate) fn all_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `all`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
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
    use crate::rows::layout::Component;

    fn layout(features: usize, rows: usize) -> Arc<Layout> {
        let component = |name: &str, features, dtype| Component { name: name.into(), features, dtype };
        Arc::new(Layout::new(&[component("a", features, DType::F32), component("b", 3, DType::F16)], rows).unwrap())
    }

    #[test]
    fn frames_are_zeroed_aligned_and_disjoint() {
        let layout = layout(5, 7);
        let mut frames = Reserved::new(&layout, 9, "test").unwrap().touch();
        assert_eq!(frames.len(), 9);
        for (i, frame) in frames.iter_mut().enumerate() {
            assert!(frame.all().iter().all(|&byte| byte == 0));
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
        assert!(matches!(Reserved::new(&layout, 1 << 30, "test"), Err(BuildError::Overflow { .. })));
        assert!(matches!(Reserved::new(&layout, 1 << 10, "test"), Err(BuildError::Allocation { .. })));
    }
}
