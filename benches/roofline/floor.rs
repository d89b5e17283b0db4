//! Measures the floor of every design that copies rows in and out: two plain memcpys of the same bytes.
//!
//! One thread copies batches from a pool of sources sequentially into one half of a ring. Another thread copies sequentially from the
//! other half into reused minibatches. Both use `copy_from_slice`. Then the halves swap. Nothing is shuffled, and no thread waits for
//! the other within a half.

use std::hint::black_box;
use std::mem;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) struct Floor<'a> {
    sources: &'a [Vec<f32>],
    filling: Vec<f32>,
    draining: Vec<f32>,
    minibatches: Vec<Vec<f32>>,
}

impl<'a> Floor<'a> {
    /// Makes a ring of about `window_bytes`, and writes to all of its pages.
    pub(crate) fn new(sources: &'a [Vec<f32>], window_bytes: usize) -> Self {
        let batch = sources[0].len();
        let half = batch * (window_bytes / 2).div_ceil(batch * size_of::<f32>());
        Floor { sources, filling: vec![1.0; half], draining: vec![1.0; half], minibatches: vec![vec![1.0; batch]; 2] }
    }

    /// Moves at least `batches` batches through the ring. Returns how many batches it moved, and how long that took.
    pub(crate) fn run(&mut self, batches: usize) -> (usize, Duration) {
        let half = self.filling.len() / self.sources[0].len();
        let passes = batches.div_ceil(half);
        let start = Instant::now();
        for _ in 0..passes {
            self.half();
            mem::swap(&mut self.filling, &mut self.draining);
        }
        (passes * half, start.elapsed())
    }

    fn half(&mut self) {
        let batch = self.sources[0].len();
        let slots = self.filling.chunks_exact_mut(batch);
        let sources = self.sources.iter().cycle();
        thread::scope(|scope| {
            scope.spawn(|| slots.zip(sources).for_each(|(slot, source)| slot.copy_from_slice(source)));
            for (i, slot) in self.draining.chunks_exact(batch).enumerate() {
                let minibatch = &mut self.minibatches[i % 2];
                minibatch.copy_from_slice(slot);
                black_box(minibatch);
            }
        });
    }
}
