//! The rows of a recording again: shards in a seeded order, the next one read ahead.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use crate::disk::disk::Doing;
use crate::error::RecordingError;
use crate::recording::recording::Recording;
use crate::recording::shard;
use crate::rows::batch::Batch;
use crate::rows::element::{DType, Element};
use crate::rows::layout::ComponentKey;

/// How a recording is replayed.
#[derive(Clone, Debug)]
pub struct Replay {
    recording: Recording,
    chosen: Vec<usize>,
    seed: u64,
    epochs: u64,
    rank: u64,
    world_size: u64,
    start: Position,
}

/// A place in a replay: what comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Rows of this rank that came before it in its epoch.
    pub row: u64,
}

/// Rows of one shard, or of the part of it that is this rank's.
pub struct ReplayedRows {
    /// The name and rows of each chosen component, in the order of choice. Fit for `extend_pass`.
    pub pass: Vec<(Arc<str>, Batch)>,
    /// Where to start to get what follows these rows.
    pub next: Position,
}

impl Recording {
    /// Gives the rows out again, shards in a seeded order.
    #[must_use]
    pub fn replay(&self) -> Replay {
        Replay::new(self.clone())
    }
}

impl Replay {
    fn new(recording: Recording) -> Self {
        let chosen = (0..recording.components().len()).collect();
        Replay { recording, chosen, seed: 0, epochs: 1, rank: 0, world_size: 1, start: Position::default() }
    }

    /// Reads only these components.
    ///
    /// # Errors
    /// [`RecordingError::Component`] for one that is not there.
    pub fn components<K: ComponentKey>(mut self, keys: impl IntoIterator<Item = K>) -> Result<Self, RecordingError> {
        let found: Result<Vec<usize>, _> = keys.into_iter().map(|key| self.recording.layout.find(key)).collect();
        self.chosen = found?;
        Ok(self)
    }

    /// The seed of the order of shards, which differs in each epoch. Default: 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How often each row is given out. Default: 1.
    #[must_use]
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.epochs = epochs;
        self
    }

    /// Gives out one of `world_size` parts, which do not overlap, leave nothing out, and differ by at most one row. All ranks
    /// need the same seed.
    ///
    /// # Errors
    /// [`RecordingError::Setting`] if `rank` is not below `world_size`, or there are fewer rows than ranks.
    pub fn rank(mut self, rank: u64, world_size: u64) -> Result<Self, RecordingError> {
        let rows = self.recording.rows();
        if rank >= world_size {
            let expected = format!("below world_size, which is {world_size}");
            return Err(RecordingError::Setting { what: "rank", value: rank.to_string(), expected });
        }
        if world_size > rows {
            let expected = format!("at most the {rows} rows of the recording");
            return Err(RecordingError::Setting { what: "world_size", value: world_size.to_string(), expected });
        }
        (self.rank, self.world_size) = (rank, world_size);
        Ok(self)
    }

    /// Starts where an earlier replay of the same settings was.
    #[must_use]
    pub fn starting_at(mut self, position: Position) -> Self {
        self.start = position;
        self
    }

    /// Starts to read. One thread reads a shard ahead, so at most three shards are in memory.
    ///
    /// # Errors
    /// [`RecordingError`] if there is no thread to be had. Later errors come from the iterator, which ends with them.
    pub fn start(self) -> Result<Replaying, RecordingError> {
        let (sender, receiver) = bounded(1);
        let dir = self.recording.shards[0].0.clone();
        let read = move || {
            for epoch in self.start.epoch..self.epochs {
                let skip = if epoch == self.start.epoch { self.start.row } else { 0 };
                for (shard, rows, before) in self.parts(epoch, skip) {
                    let row = before + rows.end - rows.start;
                    let next = if row == self.own_rows() {
                        Position { epoch: epoch + 1, row: 0 }
                    } else {
                        Position { epoch, row }
                    };
                    let read = self.read(shard, rows).map(|pass| ReplayedRows { pass, next });
                    let failed = read.is_err();
                    if sender.send(read).is_err() || failed {
                        return;
                    }
                }
            }
        };
        thread::Builder::new().name("replay".to_owned()).spawn(read).doing("start a thread to read", &dir)?;
        Ok(Replaying { receiver })
    }

    /// This rank's rows, counted in the order of an epoch.
    fn own(&self) -> Range<u64> {
        let rows = u128::from(self.recording.rows());
        let bound = |rank: u64| (rows * u128::from(rank) / u128::from(self.world_size)) as u64;
        bound(self.rank)..bound(self.rank + 1)
    }

    fn own_rows(&self) -> u64 {
        self.own().end - self.own().start
    }

    /// This rank's parts of an epoch: the shard, its rows, and how many rows of this rank come before.
    fn parts(&self, epoch: u64, skip: u64) -> Vec<(usize, Range<u64>, u64)> {
        let mut order: Vec<usize> = (0..self.recording.shards.len()).collect();
        // One stream for each epoch, so that starting at an epoch needs none before it.
        let seed = self.seed ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
        let own = self.own();
        let from = own.start.saturating_add(skip);
        let (mut parts, mut first) = (Vec::new(), 0);
        for shard in order {
            let end = first + self.recording.shards[shard].1.rows;
            let (low, high) = (from.max(first), own.end.min(end));
            if low < high {
                parts.push((shard, low - first..high - first, low - own.start));
            }
            first = end;
        }
        parts
    }

    fn read(&self, index: usize, rows: Range<u64>) -> Result<Vec<(Arc<str>, Batch)>, RecordingError> {
        let (path, info) = &self.recording.shards[index];
        let read = |&component: &usize| {
            let bytes = shard::read_rows(&*self.recording.disk, path, info, component)?;
            let length = self.recording.layout.row_bytes(component);
            let bytes = &bytes[rows.start as usize * length..rows.end as usize * length];
            let found = &self.recording.components()[component];
            let batch = match found.dtype {
                DType::F32 => batch::<f32>(bytes, found.features),
                DType::F16 => batch::<f16>(bytes, found.features),
                DType::BF16 => batch::<bf16>(bytes, found.features),
                DType::U32 => batch::<u32>(bytes, found.features),
                DType::I64 => batch::<i64>(bytes, found.features),
            };
            let batch = batch.map_err(|error| shard::damaged(path, error.to_string()))?;
            Ok((found.name.clone(), batch))
        };
        self.chosen.iter().map(read).collect()
    }
}

fn batch<T: Element>(bytes: &[u8], features: usize) -> Result<Batch, crate::error::ShapeError> {
    let mut values = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
    Batch::from_vec(values, features)
}

/// The rows of a replay, in order. Made by [`Replay::start`].
pub struct Replaying {
    receiver: Receiver<Result<ReplayedRows, RecordingError>>,
}

impl Iterator for Replaying {
    type Item = Result<ReplayedRows, RecordingError>;

    /// Blocks until the next shard is read.
    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.recv().ok()
    }
}

impl FusedIterator for Replaying {}

impl fmt::Debug for Replaying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Replaying")
    }
}

impl fmt::Debug for ReplayedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayedRows").field("pass", &self.pass).field("next", &self.next).finish()
    }
}
