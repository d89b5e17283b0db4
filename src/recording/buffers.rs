//! BufferMemory for the files of shards. Later files use it again, because to get new memory takes longer than to read into it.

use std::io;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use crate::memory::pages::map;

/// Buffers of this many bytes or more are mapped from the operating system, and large ones use huge pages.
const MAPPED: usize = 1 << 20;

/// Keeps the buffers that are not in use. There are never more buffers than were in use at once.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<BufferMemory>>>);

impl Buffers {
    /// Takes a buffer of at least `bytes` bytes. It still holds the bytes of its last use.
    ///
    /// # Errors
    /// Returns an error if there is not enough memory.
    pub(crate) fn take(&self, bytes: usize) -> io::Result<Buffer> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = spare.iter().position(|memory| memory.bytes().len() >= bytes);
        let found = fits.map(|at| spare.swap_remove(at));
        if found.is_none() {
            // All spare buffers are too small. One of them makes room for the new buffer.
            spare.pop();
        }
        drop(spare);
        let memory = found.map_or_else(|| BufferMemory::new(bytes), Ok)?;
        Ok(Buffer { memory, home: self.clone() })
    }
}

/// Bytes that start at a multiple of eight.
enum BufferMemory {
    /// Fewer than [`MAPPED`] bytes. A mapping would waste memory.
    Few(Vec<u64>),
    Pages {
        map: MmapMut,
        start: usize,
    },
}

impl BufferMemory {
    fn new(bytes: usize) -> io::Result<BufferMemory> {
        if bytes < MAPPED {
            return Ok(BufferMemory::Few(vec![0; bytes.div_ceil(8)]));
        }
        let (map, start) = map(bytes).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(BufferMemory::Pages { map, start })
    }

    fn bytes(&self) -> &[u8] {
        match self {
            BufferMemory::Few(words) => bytemuck::cast_slice(words),
            BufferMemory::Pages { map, start } => &map[*start..],
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            BufferMemory::Few(words) => bytemuck::cast_slice_mut(words),
            BufferMemory::Pages { map, start } => &mut map[*start..],
        }
    }
}

/// A buffer in use. Dropping it gives it back.
pub(crate) struct Buffer {
    memory: BufferMemory,
    home: Buffers,
}

impl Buffer {
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.memory.bytes()[range]
    }

    pub(crate) fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.memory.bytes_mut()[range]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = mem::replace(&mut self.memory, BufferMemory::Few(Vec::new()));
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_buffers_than_were_in_use_at_once() {
        let buffers = Buffers::default();
        let spare = || buffers.0.lock().unwrap().iter().map(|memory| memory.bytes().len()).collect::<Vec<_>>();
        let (first, second) = (buffers.take(80).unwrap(), buffers.take(9).unwrap());
        drop((first, second));
        assert_eq!(spare(), [80, 16]);
        let mut again = buffers.take(80).unwrap();
        assert_eq!(spare(), [16]);
        again.bytes_mut(72..80).fill(7);
        assert_eq!(again.bytes(72..80), [7; 8]);
        drop(buffers.take(81).unwrap()); // takes the place of the one that is too small
        assert_eq!(spare(), [88]);
    }
}
