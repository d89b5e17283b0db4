//! One loop over a store of fixed size.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::{Arc, Mutex};

use crate::dealing::random::shuffle;
use crate::memory::frame::Frame;
use crate::memory::part::Part;
use crate::memory::pool::{FrameHome, Pool};
use crate::ring_store::minibatch::Minibatch;
use crate::rows::build_error::BuildError;
use crate::rows::layout::Layout;
use crate::tensor_store::rows::Tensor;
use crate::waiting::wait::lock;

/// Iterates once over the rows of a [`TensorStore`](crate::TensorStore). Made by [`TensorStore::epoch`](crate::TensorStore::epoch).
///
/// Ends early if the store is emptied.
pub struct Epoch {
    tensor: Arc<Tensor>,
    order: Vec<u32>,
    served: usize,
    ordinal: u64,
    generation: u64,
    layout: Arc<Layout>,
    pool: Arc<EpochPool>,
}

impl Epoch {
    /// Over the rows that are stored now.
    pub(crate) fn new(tensor: Arc<Tensor>, batch_size: usize) -> Result<Self, BuildError> {
        let layout = Arc::new(Layout::new(tensor.layout.components(), batch_size.min(tensor.layout.rows()))?);
        // The caller works on one frame while the iterator fills the other.
        let mut pool = Pool::new(KEPT);
        Frame::allocate(&layout, KEPT, "two minibatches")?.into_iter().for_each(|frame| pool.put(frame));
        let pool = Arc::new(EpochPool(Mutex::new(pool)));
        let (order, generation) = {
            let data = &mut *tensor.write();
            let mut order = data.order[..data.len()].to_vec();
            shuffle(&mut order, &mut data.rng);
            (order, data.generation)
        };
        Ok(Epoch { tensor, order, served: 0, ordinal: 0, generation, layout, pool })
    }
}

impl Iterator for Epoch {
    type Item = Minibatch;

    fn next(&mut self) -> Option<Minibatch> {
        let rows = self.layout.rows().min(self.order.len() - self.served);
        let data = self.tensor.read();
        if rows == 0 || data.generation != self.generation {
            return None;
        }
        let kept = lock(&self.pool.0).take();
        let new = || Frame::allocate_one(&self.layout, "a minibatch").unwrap_or_else(|error| panic!("{error}"));
        let mut frame = kept.unwrap_or_else(new);
        let picked = &self.order[self.served..][..rows];
        frame.gather(rows, |component| {
            let row = data.rows.rows_of(component);
            move |slot: usize| row(picked[slot] as usize)
        });
        self.served += rows;
        self.ordinal += 1;
        let part = Part::whole(frame, rows, self.pool.clone());
        Some(Minibatch::new(part, self.layout.clone(), self.ordinal - 1))
    }

    /// At most the minibatches that are left: the epoch ends early if the store is emptied.
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some((self.order.len() - self.served).div_ceil(self.layout.rows())))
    }
}

impl FusedIterator for Epoch {}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch").field("rows", &self.order.len()).field("served", &self.served).finish_non_exhaustive()
    }
}

/// The frames of an epoch's minibatches.
struct EpochPool(Mutex<Pool>);

/// How many frames are kept for the next minibatches. Other frames are freed.
const KEPT: usize = 2;

impl FrameHome for EpochPool {
    fn give_back(&self, frame: Frame) {
        let mut pool = lock(&self.0);
        if pool.len() < KEPT {
            return pool.put(frame);
        }
        drop(pool);
        drop(frame);
    }
}
