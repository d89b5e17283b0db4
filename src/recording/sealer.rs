//! The thread that makes shards safe while the next shard is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use crate::disk::disk::Disk;
use crate::disk::error::DiskError;
use crate::recording::lane_end::{self, LaneEnd};
use crate::recording::shard_writer::WrittenShard;
use crate::rows::error::WriteError;
use crate::rows::values::ValueCounts;
use crate::waiting::panics::{Panic, discard, message};
use crate::waiting::wait::lock;

/// The waiting shards are synced when they have this many open files. A process can open only a limited number of files.
const OPEN_FILES: usize = 256;

/// Says how much of a lane is on disk in whole shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Safe {
    /// How many passes are safe. This is also the number of the next pass.
    pub passes: u64,
    /// How many rows of each component are safe.
    pub rows: u64,
}

/// Says when a [`Recorder`](crate::Recorder) syncs its files. In any case, a shard gets its name after its files are synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// Syncs each shard as soon as it is written. A crash loses at most three shards.
    #[default]
    EachShard,
    /// Syncs at [`flush`](crate::Recorder::flush), at [`finish`](crate::Recorder::finish), when the recorder is dropped, and when 256 files
    /// wait. A crash of the process or of the machine loses everything since then. Use it for many small shards, or if the file system
    /// syncs slowly.
    AtFlush,
}

/// How far a lane has come, and the first error of the disk, or panic of a thread. All threads of the recorder share it.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<(Safe, Option<WriteError>)>, Mutex<Vec<ValueCounts>>);

impl Progress {
    pub(crate) fn new(safe: Safe) -> Self {
        Progress(Mutex::new((safe, None)), Mutex::default())
    }

    /// Returns what is safe, or the first error if there was one.
    pub(crate) fn outcome(&self) -> Result<Safe, WriteError> {
        let progress = lock(&self.0);
        progress.1.clone().map_or(Ok(progress.0), Err)
    }

    /// Returns what is safe, even if there was an error.
    pub(crate) fn safe(&self) -> Safe {
        lock(&self.0).0
    }

    /// The rows of each component whose values are not finite or overflowed. Empty if there are none.
    pub(crate) fn values(&self) -> Vec<ValueCounts> {
        lock(&self.1).clone()
    }

    /// Notes the counts of all components.
    pub(crate) fn note_values(&self, counts: Vec<ValueCounts>) {
        *lock(&self.1) = counts;
    }

    /// Notes an error. The first error stays.
    pub(crate) fn fail(&self, error: impl Into<WriteError>) {
        lock(&self.0).1.get_or_insert(error.into());
    }

    /// Notes a panic of a thread. Returns it as an error.
    pub(crate) fn fail_by(&self, panic: Panic) -> WriteError {
        let cause = format!("{} (on a thread of the recorder)", message(&*panic));
        discard(panic);
        let error = WriteError::Poisoned { cause: cause.into() };
        self.fail(error.clone());
        error
    }
}

pub(crate) enum SealerMessage {
    Shard(Box<WrittenShard>),
    /// Makes all shards before it safe, and replies.
    Flush(Sender<Result<Safe, WriteError>>),
    /// Does the same as a flush, and says that the lane is finished.
    Finish(Sender<Result<Safe, WriteError>>),
}

pub(crate) struct Sealer {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) lane: String,
    pub(crate) policy: SyncPolicy,
    pub(crate) progress: Arc<Progress>,
    /// How many shards have their names.
    pub(crate) shards: u64,
    /// Whether the folder says that the lane is finished.
    pub(crate) finished: bool,
    pub(crate) waiting: Vec<WrittenShard>,
    /// Whether a shard is missing. Later shards cannot be used then.
    pub(crate) gap: bool,
}

impl Sealer {
    pub(crate) fn run(mut self, queue: &Receiver<SealerMessage>) {
        for message in queue {
            match message {
                SealerMessage::Shard(shard) => {
                    self.waiting.push(*shard);
                    let open: usize = self.waiting.iter().map(WrittenShard::open_files).sum();
                    if self.policy == SyncPolicy::EachShard || open >= OPEN_FILES {
                        self.catch(Sealer::settle);
                    }
                }
                SealerMessage::Flush(reply) => {
                    self.catch(Sealer::settle);
                    let _ = reply.send(self.progress.outcome());
                }
                SealerMessage::Finish(reply) => {
                    self.catch(Sealer::settle);
                    self.catch(|sealer| sealer.finish().unwrap_or_else(|error| sealer.progress.fail(error)));
                    let _ = reply.send(self.progress.outcome());
                }
            }
        }
        self.catch(Sealer::settle);
    }

    /// Notes a panic as the error of the lane. The thread goes on, and answers every caller with this error.
    fn catch(&mut self, work: impl FnOnce(&mut Self)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            self.gap = true;
            let _ = self.progress.fail_by(panic);
        }
    }

    /// Makes the waiting shards safe, up to the first that fails.
    fn settle(&mut self) {
        for shard in std::mem::take(&mut self.waiting) {
            if self.gap {
                break;
            }
            if let Err(error) = self.name(shard) {
                self.gap = true;
                self.progress.fail(error);
            }
        }
    }

    fn name(&mut self, shard: WrittenShard) -> Result<(), DiskError> {
        if self.finished {
            lane_end::remove(&*self.disk, &self.dir, &self.lane)?;
            self.finished = false;
        }
        let info = shard.name()?;
        self.shards += 1;
        let safe = Safe { passes: info.first_pass + info.passes, rows: info.first_row + info.rows };
        lock(&self.progress.0).0 = safe;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        let Safe { passes, rows } = self.progress.outcome()?;
        if !self.finished {
            lane_end::write(&*self.disk, &self.dir, LaneEnd::new(&self.lane, self.shards, rows, passes))?;
            self.finished = true;
        }
        Ok(())
    }
}
