//! Gives out the rows of a recording: the shards in a seeded order, with the next ones read ahead.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded};

use crate::dealing::random::{Streams, shuffle};
use crate::disk::checksum::checksum;
use crate::disk::disk::Doing;
use crate::recording::buffers::Buffers;
use crate::recording::error::RecordingError;
use crate::recording::lent::lend;
use crate::recording::recording::Recording;
use crate::recording::shard::{self, ShardRows};
use crate::ring_store::snapshot::body::ReplayBody;
use crate::rows::batch::Batch;
use crate::rows::layout::{Component, ComponentKey};
use crate::waiting::panics::{discard, message};

/// How many threads read.
const READERS: usize = 2;

/// The version of the rule for the order of shards. A snapshot goes on only under the rule that it began with.
pub(crate) const ORDER_VERSION: u32 = 2;

/// Configures how a recording is replayed. Made by [`Recording::replay`].
#[derive(Clone, Debug)]
pub struct Replay {
    recording: Recording,
    chosen: Vec<usize>,
    seed: u64,
    first_epoch: u64,
    epochs: u64,
    rank: u64,
    world_size: u64,
    part: Option<Range<u64>>,
    start: Option<Position>,
}

/// A place in a replay. It names the row that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The number of the epoch, from 0.
    pub epoch: u64,
    /// How many rows of this rank come before the place in the epoch.
    pub row: u64,
}

/// Rows of one shard, or of the part of a shard that belongs to this rank.
pub struct ReplayedRows {
    /// All rows of the shard, for each chosen component in the order of choice.
    columns: Vec<(Component, Arc<ShardRows>)>,
    rows: Range<usize>,
    next: Position,
}

impl ReplayedRows {
    /// Returns how many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Returns the place behind these rows. Give it to [`Replay::starting_at`] to go on from here.
    #[must_use]
    pub fn next(&self) -> Position {
        self.next
    }

    /// Returns the name and the rows, `[rows, features]`, of each chosen component in the order of choice. You can give the result to
    /// `extend_pass`. Copies nothing.
    #[must_use]
    pub fn pass(&self) -> Vec<(&str, Batch)> {
        self.columns.iter().map(|column| (&*column.0.name, lend_rows(column, self.rows.clone()))).collect()
    }

    /// Cuts the rows into passes of at most `rows` rows. A component's number is its place in the order of choice.
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
    /// Configures a replay, which gives the rows out again, the shards in a seeded order.
    #[must_use]
    pub fn replay(&self) -> Replay {
        Replay::new(self.clone())
    }
}

impl Replay {
    fn new(recording: Recording) -> Self {
        let chosen = (0..recording.components().len()).collect();
        Replay {
            recording,
            chosen,
            seed: 0,
            first_epoch: 0,
            epochs: 1,
            rank: 0,
            world_size: 1,
            part: None,
            start: None,
        }
    }

    /// Reads only these components.
    ///
    /// # Errors
    /// [`RecordingError::Component`] if the recording has no such component. [`RecordingError::Setting`] if none is chosen.
    pub fn components<K: ComponentKey>(mut self, keys: impl IntoIterator<Item = K>) -> Result<Self, RecordingError> {
        let found: Result<Vec<usize>, _> = keys.into_iter().map(|key| self.recording.layout.find(key)).collect();
        self.chosen = found?;
        if self.chosen.is_empty() {
            let names: Vec<&str> = self.recording.components().iter().map(|component| &*component.name).collect();
            let expected = format!("one or more of {}", names.join(", "));
            return Err(RecordingError::Setting {
                what: "the list of components",
                value: "empty".to_owned(),
                expected,
            });
        }
        Ok(self)
    }

    /// Sets the seed of the order of shards. The order differs in each epoch. Default: 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets how many epochs there are. Each epoch gives out each row once, in another order. Default: 1.
    #[must_use]
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.epochs = epochs;
        self
    }

    /// Sets the number of the first epoch, on which the order depends. Default: 0. If you make a ring for each epoch, set it to the number
    /// of that epoch.
    #[must_use]
    pub fn first_epoch(mut self, epoch: u64) -> Self {
        self.first_epoch = epoch;
        self
    }

    /// Gives out one of `world_size` parts of each epoch. The parts do not overlap, and together they have all rows. The number of rows in
    /// all epochs together differs by at most one from rank to rank. All ranks need the same seed.
    ///
    /// # Errors
    /// [`RecordingError::Setting`] if `rank` is not below `world_size`, or if there are fewer rows than ranks.
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

    /// Gives out only these rows of each epoch, counted from the first row of this rank. So several processes can share the rows of a rank.
    /// Rows behind the end of the epoch are left out.
    #[must_use]
    pub fn part(mut self, rows: Range<u64>) -> Self {
        self.part = Some(rows);
        self
    }

    /// Starts at a place in an earlier replay with the same settings. See [`ReplayedRows::next`].
    #[must_use]
    pub fn starting_at(mut self, position: Position) -> Self {
        self.start = Some(position);
        self
    }

    /// Starts to read, and returns an iterator over the rows. Returns at once.
    ///
    /// Two threads read ahead. So at most five shards are in memory: one that you hold, two that wait, and two that are being read.
    ///
    /// # Errors
    /// [`RecordingError::Setting`] if the epochs have no numbers below 2^64, or if the replay has no such place to start at.
    /// [`RecordingError::Disk`] if the operating system has no thread. The iterator returns later errors, and ends after an error.
    pub fn start(self) -> Result<Replaying, RecordingError> {
        self.check_epochs()?;
        let dir = self.recording.dir().to_owned();
        let buffers = Buffers::default();
        let read = |reader: usize| {
            let (replay, buffers) = (self.clone(), buffers.clone());
            let (sender, receiver) = bounded(1);
            let read = move || {
                let read_all = || {
                    for part in replay.all_parts().skip(reader).step_by(READERS) {
                        let read = replay.read(part, &buffers);
                        let failed = read.is_err();
                        if sender.send(read).is_err() || failed {
                            return;
                        }
                    }
                };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(read_all)) {
                    // Without this, the end of the thread would look like the end of the data.
                    let _ = sender.send(Err(RecordingError::Panicked { cause: message(&*panic).into() }));
                    discard(panic);
                }
            };
            thread::Builder::new().name("replay".to_owned()).spawn(read).doing("start a thread to read", &dir)?;
            Ok(receiver)
        };
        Ok(Replaying { readers: (0..READERS).map(read).collect::<Result<_, RecordingError>>()? })
    }

    /// Checks that every epoch has a number, and that the place to start at is in this replay or at its end.
    pub(crate) fn check_epochs(&self) -> Result<(), RecordingError> {
        let setting = |what, value: String, expected: String| Err(RecordingError::Setting { what, value, expected });
        let (first, epochs) = (self.first_epoch, self.epochs);
        let Some(end) = first.checked_add(epochs) else {
            let expected = format!(
                "at most {} with first_epoch {first}, so that the epochs have numbers below 2^64",
                u64::MAX - first
            );
            return setting("epochs", epochs.to_string(), expected);
        };
        let Some(Position { epoch, row }) = self.start else { return Ok(()) };
        let rows = if epoch < end { self.own_rows(epoch) } else { 0 };
        if epoch < first || epoch > end || row > rows {
            let expected = format!(
                "a place in the epochs {first} to {end}, the last of which is the end of the replay; epoch {epoch} has {rows} rows here"
            );
            return setting("starting_at", format!("epoch {epoch}, row {row}"), expected);
        }
        Ok(())
    }

    /// Returns the rows of this rank in an epoch, counted in the order of the epoch.
    ///
    /// A rank takes another part in each epoch. Some parts are one row longer. The bounds are rounded down, which spreads these parts
    /// evenly. So the number of rows in any number of epochs differs by at most one from rank to rank.
    fn own(&self, epoch: u64) -> Range<u64> {
        let part = (u128::from(self.rank) + u128::from(epoch)) % u128::from(self.world_size);
        let rows = u128::from(self.recording.rows());
        let bound = |part: u128| (rows * part / u128::from(self.world_size)) as u64;
        let (start, end) = (bound(part), bound(part + 1));
        self.part.as_ref().map_or(start..end, |part| {
            let within = |row: u64| start.saturating_add(row).min(end);
            within(part.start)..within(part.end).max(within(part.start))
        })
    }

    fn own_rows(&self, epoch: u64) -> u64 {
        self.own(epoch).end - self.own(epoch).start
    }

    /// Returns the rows of this rank in as many epochs as there are ranks.
    fn rows_of_cycle(&self) -> u64 {
        match self.part {
            None => self.recording.rows(),
            Some(_) => (0..self.world_size).map(|epoch| self.own_rows(epoch)).sum(),
        }
    }

    /// Lists the parts of shards that belong to this rank, from the start on.
    fn all_parts(&self) -> impl Iterator<Item = ShardPart> {
        let first = Position { epoch: self.first_epoch, row: 0 };
        let start = self.start.unwrap_or(first);
        let skip = move |epoch| if epoch == start.epoch { start.row } else { 0 };
        (start.epoch..self.first_epoch.saturating_add(self.epochs))
            .flat_map(move |epoch| self.parts(epoch, skip(epoch)))
    }

    /// Lists the parts of shards that belong to this rank in an epoch.
    fn parts(&self, epoch: u64, skip: u64) -> Vec<ShardPart> {
        let mut order: Vec<usize> = (0..self.recording.shards.len()).collect();
        // Each epoch has random numbers of its own. So a replay can start at any epoch.
        shuffle(&mut order, &mut Streams::new(self.seed, 0).epoch(epoch));
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

    // The ring that this replay fills needs the following.

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

    /// Returns the position behind `rows` rows of this rank, counted from the start of the first epoch.
    pub(crate) fn position(&self, rows: u64) -> Position {
        // In as many epochs as there are ranks, every rank has all rows once.
        let all = self.rows_of_cycle();
        if all == 0 {
            return Position { epoch: self.first_epoch, row: 0 };
        }
        let epochs = (rows / all).saturating_mul(self.world_size);
        let (mut epoch, mut row) = (self.first_epoch.saturating_add(epochs), rows % all);
        while row >= self.own_rows(epoch) {
            row -= self.own_rows(epoch);
            epoch += 1;
        }
        Position { epoch, row }
    }

    /// A number that depends on the seed and the first epoch, and is 0 if both are.
    pub(crate) fn stream(&self) -> u64 {
        self.seed.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ self.first_epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Where an earlier replay was, if this one starts there.
    pub(crate) fn start_position(&self) -> Option<Position> {
        self.start
    }

    /// How many epochs.
    pub(crate) fn epochs_in_all(&self) -> u64 {
        self.epochs
    }

    /// The rows of this rank in all epochs.
    pub(crate) fn rows_in_all_epochs(&self) -> u64 {
        self.rows_of(self.rank)
    }

    fn rows_of(&self, rank: u64) -> u64 {
        let replay = Replay { rank, ..self.clone() };
        let rest = (0..self.epochs % self.world_size)
            .map(|epoch| replay.own_rows(self.first_epoch.saturating_add(epoch)))
            .sum();
        (self.epochs / self.world_size).saturating_mul(replay.rows_of_cycle()).saturating_add(rest)
    }

    /// Returns whether another rank has one row more in all epochs.
    pub(crate) fn has_fewest(&self) -> bool {
        self.rows_of(self.rank) < self.rows_of_ranks().1
    }

    /// Returns the fewest and the most rows that a rank has in all epochs.
    pub(crate) fn rows_of_ranks(&self) -> (u64, u64) {
        let rows = || (0..self.world_size).map(|rank| self.rows_of(rank));
        (rows().min().unwrap_or(0), rows().max().unwrap_or(0))
    }

    /// Returns what differs for replays of other rows or in another order.
    pub(crate) fn body(&self) -> ReplayBody {
        let shards = self.recording.shards.iter().map(|(_, info)| {
            let checksums: Vec<&str> = self.chosen.iter().map(|&c| info.components[c].checksum.as_str()).collect();
            (&info.lane, info.number, info.rows, checksums)
        });
        let shards: Vec<_> = shards.collect();
        let what = (self.seed, self.first_epoch, self.rank, self.world_size, &self.chosen, shards);
        // This cannot fail: there are only strings and numbers.
        let what = match &self.part {
            None => serde_json::to_vec(&what),
            Some(part) => serde_json::to_vec(&(what, part)),
        };
        ReplayBody { version: ORDER_VERSION, fingerprint: checksum(&what.unwrap_or_default()) }
    }
}

/// A part of a shard, and the position behind it.
struct ShardPart {
    shard: usize,
    rows: Range<u64>,
    next: Position,
}

/// Iterates over the rows of a replay, in order. Made by [`Replay::start`].
pub struct Replaying {
    /// The readers, which give parts in turn. Empty after the end.
    readers: VecDeque<Receiver<Result<ReplayedRows, RecordingError>>>,
}

impl Iterator for Replaying {
    type Item = Result<ReplayedRows, RecordingError>;

    /// Returns the rows of the next part of a shard. Blocks until they are read.
    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.readers.pop_front()?;
        let next = reader.recv().ok();
        match &next {
            Some(Ok(_)) => self.readers.push_back(reader),
            // The other readers have only later parts.
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
