//! The rows of a recording again: shards in a seeded order, the next one read ahead.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use crate::disk::checksum::checksum;
use crate::disk::disk::Doing;
use crate::error::RecordingError;
use crate::recording::buffers::Buffers;
use crate::recording::lent::lend;
use crate::recording::recording::Recording;
use crate::recording::shard::{self, ShardRows};
use crate::rows::batch::Batch;
use crate::rows::layout::{Component, ComponentKey};

/// Threads that read.
const READERS: usize = 2;

/// How a recording is replayed.
#[derive(Clone, Debug)]
pub struct Replay {
    recording: Recording,
    chosen: Vec<usize>,
    seed: u64,
    first_epoch: u64,
    epochs: u64,
    rank: u64,
    world_size: u64,
    start: Option<Position>,
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
    /// Of each chosen component, in the order of choice: all rows of the shard.
    columns: Vec<(Component, Arc<ShardRows>)>,
    rows: Range<usize>,
    next: Position,
}

impl ReplayedRows {
    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Where to start to get what follows these rows.
    #[must_use]
    pub fn next(&self) -> Position {
        self.next
    }

    /// The name and rows of each chosen component, in the order of choice: a pass for `extend_pass`. Copies nothing.
    #[must_use]
    pub fn pass(&self) -> Vec<(&str, Batch)> {
        self.columns.iter().map(|column| (&*column.0.name, lend_rows(column, self.rows.clone()))).collect()
    }

    /// Passes of at most so many rows, with the number of each component in the order of choice.
    pub(crate) fn pieces(self, rows: usize) -> impl Iterator<Item = Vec<(usize, Batch)>> {
        let Range { start, end } = self.rows;
        let piece = move |first: usize| {
            self.columns
                .iter()
                .enumerate()
                .map(|(number, column)| (number, lend_rows(column, first..end.min(first + rows))))
                .collect()
        };
        (start..end).step_by(rows).map(piece)
    }
}

fn lend_rows((component, shard): &(Component, Arc<ShardRows>), rows: Range<usize>) -> Batch {
    lend(shard, rows, component.dtype, component.features)
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
        Replay { recording, chosen, seed: 0, first_epoch: 0, epochs: 1, rank: 0, world_size: 1, start: None }
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

    /// How often each row is given out, each time in another order. Default: 1.
    #[must_use]
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.epochs = epochs;
        self
    }

    /// The first epoch, which decides the order. Default: 0. If you make a ring for each epoch, set it to the number of the epoch.
    #[must_use]
    pub fn first_epoch(mut self, epoch: u64) -> Self {
        self.first_epoch = epoch;
        self
    }

    /// Gives out one of `world_size` parts of each epoch. The parts do not overlap and leave nothing out. The rows of all epochs
    /// together differ by at most one from rank to rank. All ranks need the same seed.
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
        self.start = Some(position);
        self
    }

    /// Starts to read. Two threads read ahead, so at most five shards are in memory: one in your hands, two that wait, and two that are
    /// being read.
    ///
    /// # Errors
    /// [`RecordingError`] if there is no thread to be had. Later errors come from the iterator, which ends with them.
    pub fn start(self) -> Result<Replaying, RecordingError> {
        let dir = self.recording.dir().to_owned();
        let buffers = Buffers::default();
        let read = |reader: usize| {
            let (replay, buffers) = (self.clone(), buffers.clone());
            let (sender, receiver) = bounded(1);
            let read = move || {
                for part in replay.all_parts().skip(reader).step_by(READERS) {
                    let read = replay.read(part, &buffers);
                    let failed = read.is_err();
                    if sender.send(read).is_err() || failed {
                        return;
                    }
                }
            };
            thread::Builder::new().name("replay".to_owned()).spawn(read).doing("start a thread to read", &dir)?;
            Ok(receiver)
        };
        Ok(Replaying { readers: (0..READERS).map(read).collect::<Result<_, RecordingError>>()? })
    }

    /// This rank's rows of an epoch, counted in the order of the epoch.
    ///
    /// Ranks take another part in each epoch. Bounds that are rounded down spread the parts that are a row longer evenly, so the
    /// rows of any number of epochs differ by at most one from rank to rank.
    fn own(&self, epoch: u64) -> Range<u64> {
        let part = (u128::from(self.rank) + u128::from(epoch)) % u128::from(self.world_size);
        let rows = u128::from(self.recording.rows());
        let bound = |part: u128| (rows * part / u128::from(self.world_size)) as u64;
        bound(part)..bound(part + 1)
    }

    fn own_rows(&self, epoch: u64) -> u64 {
        self.own(epoch).end - self.own(epoch).start
    }

    /// This rank's parts of shards, from the start on.
    fn all_parts(&self) -> impl Iterator<Item = ShardPart> {
        let start = self.start.unwrap_or(Position { epoch: self.first_epoch, row: 0 });
        let skip = move |epoch| if epoch == start.epoch { start.row } else { 0 };
        (start.epoch..self.first_epoch.saturating_add(self.epochs))
            .flat_map(move |epoch| self.parts(epoch, skip(epoch)))
    }

    /// This rank's parts of an epoch.
    fn parts(&self, epoch: u64, skip: u64) -> Vec<ShardPart> {
        let mut order: Vec<usize> = (0..self.recording.shards.len()).collect();
        // One stream for each epoch, so that starting at an epoch needs none before it.
        let seed = self.seed ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
        let own = self.own(epoch);
        let from = own.start.saturating_add(skip);
        let (mut parts, mut first) = (Vec::new(), 0);
        for shard in order {
            let end = first + self.recording.shards[shard].1.rows;
            let (low, high) = (from.max(first), own.end.min(end));
            if low < high {
                let next = if high == own.end {
                    Position { epoch: epoch + 1, row: 0 }
                } else {
                    Position { epoch, row: high - own.start }
                };
                parts.push(ShardPart { shard, rows: low - first..high - first, next });
            }
            first = end;
        }
        parts
    }

    fn read(&self, part: ShardPart, buffers: &Buffers) -> Result<ReplayedRows, RecordingError> {
        let (path, info) = &self.recording.shards[part.shard];
        let read = |&component: &usize| {
            let shard = shard::read_rows(&*self.recording.disk, path, info, component, buffers)?;
            Ok((self.recording.components()[component].clone(), Arc::new(shard)))
        };
        let columns = self.chosen.iter().map(read).collect::<Result<_, RecordingError>>()?;
        Ok(ReplayedRows { columns, rows: part.rows.start as usize..part.rows.end as usize, next: part.next })
    }

    // What a ring that this replay fills needs to know.

    pub(crate) fn dir(&self) -> &Path {
        self.recording.dir()
    }

    /// Rows of the largest shard.
    pub(crate) fn largest_shard(&self) -> u64 {
        self.recording.shards.iter().map(|(_, info)| info.rows).max().unwrap_or(0)
    }

    /// Rows of the recording, of all ranks.
    pub(crate) fn rows_in_all(&self) -> u64 {
        self.recording.rows()
    }

    /// The components, in the order of choice.
    pub(crate) fn chosen(&self) -> impl Iterator<Item = &Component> {
        self.chosen.iter().map(|&component| &self.recording.components()[component])
    }

    /// The position behind so many rows of this rank, from the start of the first epoch.
    pub(crate) fn position(&self, rows: u64) -> Position {
        // Every rank has all rows once in as many epochs as there are ranks.
        let all = self.recording.rows();
        let (mut epoch, mut row) = (self.first_epoch + rows / all * self.world_size, rows % all);
        while row >= self.own_rows(epoch) {
            row -= self.own_rows(epoch);
            epoch += 1;
        }
        Position { epoch, row }
    }

    /// Rows of a rank in all epochs.
    fn rows_of(&self, rank: u64) -> u64 {
        let replay = Replay { rank, ..self.clone() };
        let rest = (0..self.epochs % self.world_size).map(|epoch| replay.own_rows(self.first_epoch + epoch)).sum();
        (self.epochs / self.world_size).saturating_mul(self.recording.rows()).saturating_add(rest)
    }

    /// Whether another rank has more rows in all epochs; by one, then.
    pub(crate) fn has_fewest(&self) -> bool {
        self.rows_of(self.rank) < self.rows_of_ranks().1
    }

    /// The fewest and the most rows of a rank, in all epochs.
    pub(crate) fn rows_of_ranks(&self) -> (u64, u64) {
        let rows = || (0..self.world_size).map(|rank| self.rows_of(rank));
        (rows().min().unwrap_or(0), rows().max().unwrap_or(0))
    }

    /// Tells replays of other rows, or in another order, apart.
    pub(crate) fn fingerprint(&self) -> String {
        let shards = self.recording.shards.iter().map(|(_, info)| {
            let checksums: Vec<&str> = self.chosen.iter().map(|&c| info.components[c].checksum.as_str()).collect();
            (&info.lane, info.number, info.rows, checksums)
        });
        let shards: Vec<_> = shards.collect();
        let what = (self.seed, self.first_epoch, self.rank, self.world_size, &self.chosen, shards);
        // Strings and numbers: nothing that JSON has no form for.
        checksum(&serde_json::to_vec(&what).unwrap_or_default())
    }
}

/// A part of a shard, and the position behind it.
struct ShardPart {
    shard: usize,
    rows: Range<u64>,
    next: Position,
}

/// The rows of a replay, in order. Made by [`Replay::start`].
pub struct Replaying {
    /// Parts come from each in turn; empty after the end.
    readers: VecDeque<Receiver<Result<ReplayedRows, RecordingError>>>,
}

impl Iterator for Replaying {
    type Item = Result<ReplayedRows, RecordingError>;

    /// Blocks until the next shard is read.
    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.readers.pop_front()?;
        let next = reader.recv().ok();
        match &next {
            Some(Ok(_)) => self.readers.push_back(reader),
            // The others have nothing that comes before.
            Some(Err(_)) | None => self.readers.clear(),
        }
        next
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
        f.debug_struct("ReplayedRows").field("rows", &self.rows()).field("next", &self.next).finish_non_exhaustive()
    }
}
