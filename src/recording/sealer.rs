//! The thread that makes shards safe while the next is written.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use crate::disk::disk::Disk;
use crate::error::DiskError;
use crate::pipeline::wait::lock;
use crate::recording::lane_end::{self, LaneEnd};
use crate::recording::shard_writer::WrittenShard;

/// Files that wait to be synced, at most: a process may open only so many.
const OPEN_FILES: usize = 256;

/// What of a lane is on disk in whole shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Safe {
    /// Passes: go on with this one.
    pub passes: u64,
    /// Rows of each component.
    pub rows: u64,
}

/// When a [`Recorder`](crate::Recorder) syncs its files. A shard gets its name after that, in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// Each shard as soon as it is written. A crash loses the shards that are being written: at most three.
    #[default]
    EachShard,
    /// At [`flush`](crate::Recorder::flush) and [`finish`](crate::Recorder::finish), or when 256 files wait. A crash, of the process or of
    /// the machine, loses everything since. For many small shards, and for file systems that sync slowly.
    AtFlush,
}

/// How far a lane has come, as all its threads know it.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<(Safe, Option<DiskError>)>);

impl Progress {
    pub(crate) fn new(safe: Safe) -> Self {
        Progress(Mutex::new((safe, None)))
    }

    /// What is safe; the first error, if there was one.
    pub(crate) fn outcome(&self) -> Result<Safe, DiskError> {
        let progress = lock(&self.0);
        progress.1.clone().map_or(Ok(progress.0), Err)
    }

    /// What is safe, whether or not there was an error.
    pub(crate) fn safe(&self) -> Safe {
        lock(&self.0).0
    }

    /// Notes an error. The first stays.
    pub(crate) fn fail(&self, error: DiskError) {
        lock(&self.0).1.get_or_insert(error);
    }
}

pub(crate) enum Sealed {
    Shard(Box<WrittenShard>),
    /// Everything before it is safe.
    Flush(Sender<Result<Safe, DiskError>>),
    /// As a flush, and the lane is finished.
    Finish(Sender<Result<Safe, DiskError>>),
}

pub(crate) struct Sealer {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) lane: String,
    pub(crate) policy: SyncPolicy,
    pub(crate) progress: Arc<Progress>,
    /// Shards that have their names.
    pub(crate) shards: u64,
    /// Whether the lane says that it is finished.
    pub(crate) finished: bool,
    pub(crate) waiting: Vec<WrittenShard>,
    /// Whether a shard is missing. Those behind it cannot be used.
    pub(crate) gap: bool,
}

impl Sealer {
    pub(crate) fn run(mut self, queue: &Receiver<Sealed>) {
        for message in queue {
            match message {
                Sealed::Shard(shard) => {
                    self.waiting.push(*shard);
                    let open: usize = self.waiting.iter().map(WrittenShard::open_files).sum();
                    if self.policy == SyncPolicy::EachShard || open >= OPEN_FILES {
                        self.settle();
                    }
                }
                Sealed::Flush(reply) => {
                    self.settle();
                    let _ = reply.send(self.progress.outcome());
                }
                Sealed::Finish(reply) => {
                    self.settle();
                    if let Err(error) = self.finish() {
                        self.progress.fail(error);
                    }
                    let _ = reply.send(self.progress.outcome());
                }
            }
        }
        self.settle();
    }

    /// Makes the shards that wait safe, up to the first that fails.
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

    fn finish(&mut self) -> Result<(), DiskError> {
        let Safe { passes, rows } = self.progress.outcome()?;
        if !self.finished {
            lane_end::write(&*self.disk, &self.dir, LaneEnd::new(&self.lane, self.shards, rows, passes))?;
            self.finished = true;
        }
        Ok(())
    }
}
