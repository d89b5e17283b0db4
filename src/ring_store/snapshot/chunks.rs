//! A queue that is cheap to clone: all of it but the newest entries is shared with the clone. Plain data.

use std::collections::VecDeque;
use std::sync::Arc;

/// The entries of a shared chunk. A clone copies fewer entries than this.
const CHUNK: usize = 256;

/// Entries that are added at the back, forgotten at the front, and not changed in between, except the last one.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<T> {
    /// Full chunks, oldest first, of `CHUNK` entries each.
    full: VecDeque<Arc<Vec<T>>>,
    /// The entries after the full chunks. Not empty unless the queue is empty.
    last: Vec<T>,
    /// The number of forgotten entries at the start of the first chunk.
    forgotten: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Chunks { full: VecDeque::new(), last: Vec::new(), forgotten: 0 }
    }
}

impl<T> Chunks<T> {
    pub(crate) fn push(&mut self, entry: T) {
        if self.last.len() == CHUNK {
            self.full.push_back(Arc::new(std::mem::take(&mut self.last)));
        }
        self.last.push(entry);
    }

    pub(crate) fn get(&self, n: usize) -> Option<&T> {
        let n = n + self.forgotten;
        match self.full.get(n / CHUNK) {
            Some(chunk) => chunk.get(n % CHUNK),
            None => self.last.get(n - self.full.len() * CHUNK),
        }
    }

    pub(crate) fn back_mut(&mut self) -> Option<&mut T> {
        self.last.last_mut()
    }

    /// Forgets the first entry.
    pub(crate) fn pop_front(&mut self) {
        self.forgotten += 1;
        if self.forgotten == self.full.front().map_or(self.last.len(), |first| first.len()) {
            self.forgotten = 0;
            if self.full.pop_front().is_none() {
                self.last.clear();
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.full.iter().flat_map(|chunk| chunk.iter()).chain(&self.last).skip(self.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_order_and_a_clone_stays_as_it_was() {
        let (mut chunks, mut model) = (Chunks::default(), VecDeque::new());
        let mut clones = Vec::new();
        // Fills more than three chunks, and forgets all of it, twice.
        for n in 0..8 * CHUNK {
            let fills = n / (4 * CHUNK) * 4 * CHUNK + 3 * CHUNK + 5 > n;
            if fills {
                chunks.push(n);
                model.push_back(n);
            }
            if !fills || n % 3 == 0 {
                for _ in 0..if fills { 1 } else { 4 } {
                    if model.pop_front().is_some() {
                        chunks.pop_front();
                    }
                }
            }
            assert!((0..=model.len()).all(|i| n % 50 != 0 || chunks.get(i) == model.get(i)));
            assert_eq!(chunks.back_mut().copied(), model.back().copied());
            if n % 100 == 0 {
                clones.push((chunks.clone(), model.clone()));
            }
        }
        assert!(model.is_empty());
        clones.push((chunks, model));
        for (clone, model) in clones {
            assert!(clone.iter().eq(&model));
        }
    }
}
