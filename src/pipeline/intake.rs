//! What all handles of a ring store that can write share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_channel::{Sender, bounded};
use ndarray::ArrayD;

use crate::error::{ClosedBy, IndexError};
use crate::pipeline::config::Config;
use crate::pipeline::exchange::{Control, Exchange};
use crate::pipeline::queue::{Budget, Job, Room};
use crate::pipeline::stats::{ComponentStats, Stats};
use crate::rows::index::Index;
use crate::rows::layout::Component;

/// What all handles that can write share. Dropping it, with the last of them, closes the store.
pub(crate) struct Intake {
    pub(crate) jobs: Sender<Job>,
    pub(crate) control: Sender<Control>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) room: Arc<Room>,
    pub(crate) config: Arc<Config>,
    /// The budget of all lanes that do not have their own.
    pub(crate) budget: Arc<Budget>,
    /// Rows of each component that are queued.
    pub(crate) queued: Arc<Vec<AtomicUsize>>,
    pub(crate) next_lane: AtomicU64,
}

impl Intake {
    pub(crate) fn len(&self) -> usize {
        self.exchange.count(|counts| counts.whole_rows())
    }

    pub(crate) fn empty(&self) {
        let (done, emptied) = bounded(1);
        if self.control.send(Control::Empty(done)).is_ok() {
            // An error means that the writer has ended, with nothing left to discard but ready minibatches.
            if emptied.recv().is_ok() {
                return;
            }
        }
        self.exchange.discard_all();
    }

    pub(crate) fn stats(&self) -> Stats {
        let queued = || self.queued.iter().map(|rows| rows.load(Ordering::SeqCst) as u64).collect::<Vec<_>>();
        let (counts, queued) = self.exchange.counts(queued);
        let whole = counts.whole_rows() as u64;
        let component = |(i, component): (usize, &Component)| ComponentStats {
            name: component.name.clone(),
            accepted: counts.components[i].accepted,
            queued: queued[i],
            resident: counts.components[i].staged + whole,
            served: counts.components[i].served,
            dropped: counts.components[i].dropped,
        };
        Stats {
            components: self.config.layout.components().iter().enumerate().map(component).collect(),
            minibatches_served: counts.minibatches_served,
            producer_wait: counts.producer_wait,
            consumer_wait: counts.consumer_wait,
            frames_open: counts.open_frames,
            frames_ready: counts.ready_frames,
            frames_lent: self.exchange.pool().lent(),
        }
    }

    pub(crate) fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
        let (answer, answered) = bounded(1);
        let asked = self.control.send(Control::Get(index, answer));
        let ended = || match self.exchange.fate.poisoned() {
            Some(cause) => IndexError::Poisoned { cause },
            None => IndexError::Ended,
        };
        asked.ok().and_then(|()| answered.recv().ok()).unwrap_or_else(|| Err(ended()))
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        // Nobody is left who could ask for minibatches.
        if self.exchange.consumers() == 0 {
            self.exchange.fate.close(ClosedBy::NoConsumers);
            self.exchange.abandon();
        }
    }
}
