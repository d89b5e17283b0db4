//! The thread that writes a lane's passes into shards.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender};

use crate::disk::disk::Disk;
use crate::memory::convert::RowReader;
use crate::recording::room::PassRoom;
use crate::recording::sealer::{Progress, Safe, SealerMessage};
use crate::recording::shard::ShardInfo;
use crate::recording::shard_writer::ShardWriter;
use crate::rows::batch::Batch;
use crate::rows::error::WriteError;
use crate::rows::layout::Component;
use crate::rows::pass::WholePass;
use crate::rows::values::{Said, ValueCounts};
use crate::waiting::handle::{WriteReply, Written};
use crate::waiting::panics::{Panic, Panics};

pub(crate) enum LaneMessage {
    /// A pass, and its callers. Its room is free when the thread takes the pass.
    Pass(WholePass, Vec<WriteReply>, PassRoom),
    Flush(Sender<Result<Safe, WriteError>>),
    Finish(Sender<Result<Safe, WriteError>>),
    /// Discards the shard that is being written.
    Empty(Sender<()>),
}

pub(crate) struct LaneWriter {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) lane: String,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) components: Vec<Component>,
    pub(crate) readers: Vec<RowReader>,
    /// The rows of each component whose values are not finite or overflowed, and what has been said of them.
    pub(crate) values: Vec<(ValueCounts, Said)>,
    pub(crate) shard_rows: u64,
    /// The number of the next shard.
    pub(crate) number: u64,
    /// How many passes and rows were written: the numbers of the next pass and row.
    pub(crate) next: Safe,
    /// The shard that is being written.
    pub(crate) shard: Option<ShardWriter>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) sealer: Sender<SealerMessage>,
}

impl LaneWriter {
    /// Runs until the recorder is dropped, then waits for the thread that seals shards.
    pub(crate) fn run(mut self, queue: &Receiver<LaneMessage>, sealing: thread::JoinHandle<()>) {
        for message in queue {
            match message {
                LaneMessage::Pass(pass, replies, room) => {
                    // This wakes a caller that waits for room, and its waker may panic.
                    self.catch_all(|_| drop(room));
                    self.take(pass, replies);
                }
                LaneMessage::Flush(reply) => self.end_shard_then(SealerMessage::Flush(reply)),
                LaneMessage::Finish(reply) => self.end_shard_then(SealerMessage::Finish(reply)),
                LaneMessage::Empty(reply) => {
                    self.catch_all(LaneWriter::empty);
                    let _ = reply.send(());
                }
            }
        }
        self.catch_all(LaneWriter::end_shard);
        let LaneWriter { sealer, progress, lane, .. } = self;
        drop(sealer);
        let _ = sealing.join();
        if let Err(error) = progress.outcome() {
            tracing::warn!(%error, lane, "the end of a recording could not be written");
        }
    }

    /// Writes a pass, drops its batches, and answers its callers. Foreign code may panic: the owner of a batch, or a waker.
    fn take(&mut self, pass: WholePass, replies: Vec<WriteReply>) {
        let batches = pass.into_batches();
        let mut outcome = self.catch(|writer| writer.pass(&batches));
        let mut panics = Panics::default();
        batches.into_iter().for_each(|batch| panics.catch(|| drop(batch)));
        if let Err(panic) = panics.first() {
            outcome = Err(self.fail_by(panic));
        }
        let mut panics = Panics::default();
        replies.into_iter().for_each(|reply| panics.catch(|| reply.resolve(outcome.clone())));
        if let Err(panic) = panics.first() {
            let _ = self.fail_by(panic);
        }
    }

    /// Notes a panic as the error of the lane. The thread goes on, and answers every caller with this error.
    fn catch<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, WriteError>) -> Result<T, WriteError> {
        catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|panic| Err(self.fail_by(panic)))
    }

    fn catch_all(&mut self, work: impl FnOnce(&mut Self)) {
        let _ = self.catch(|writer| {
            work(writer);
            Ok(())
        });
    }

    fn fail_by(&mut self, panic: Panic) -> WriteError {
        self.shard = None;
        self.progress.fail_by(panic)
    }

    fn pass(&mut self, batches: &[Batch]) -> Result<Written, WriteError> {
        self.progress.outcome()?;
        self.write(batches).inspect_err(|error| self.fail(error))
    }

    fn write(&mut self, batches: &[Batch]) -> Result<Written, WriteError> {
        if self.shard.is_none() {
            let info = ShardInfo {
                lane: self.lane.clone(),
                number: self.number,
                first_row: self.next.rows,
                first_pass: self.next.passes,
                metadata: self.metadata.clone(),
                ..ShardInfo::default()
            };
            self.shard = Some(ShardWriter::begin(&self.disk, &self.dir, info, &self.components)?);
        }
        let rows = batches.first().map_or(0, Batch::rows);
        let written = Written { rows, first_row: self.next.rows };
        let Some(shard) = &mut self.shard else { return Ok(written) };
        for (component, (batch, reader)) in batches.iter().zip(&mut self.readers).enumerate() {
            let mut outcome = Ok(());
            reader.read(batch, 0..rows, |_, bytes| {
                if outcome.is_ok() {
                    outcome = shard.write(component, bytes);
                }
            });
            outcome?;
        }
        self.count_values();
        let Some(shard) = &mut self.shard else { return Ok(written) };
        shard.end_pass(rows as u64);
        let full = shard.info().rows >= self.shard_rows;
        self.next.rows += rows as u64;
        self.next.passes += 1;
        if full {
            self.end_shard();
        }
        self.progress.outcome().map(|_| written)
    }

    /// Counts the rows whose values are not finite or overflowed, and warns of the first.
    fn count_values(&mut self) {
        let mut changed = false;
        for ((counts, said), (reader, component)) in
            self.values.iter_mut().zip(self.readers.iter_mut().zip(&self.components))
        {
            let more = reader.take_counts();
            changed |= more != ValueCounts::default();
            *counts += more;
            said.note(*counts).say(component);
        }
        if changed {
            self.progress.note_values(self.values.iter().map(|(counts, _)| *counts).collect());
        }
    }

    /// Hands the shard to the sealer, which makes it safe. Blocks while two other shards are not safe yet.
    fn end_shard(&mut self) {
        let Some(shard) = self.shard.take() else { return };
        match shard.end() {
            Ok(shard) => {
                self.number += 1;
                self.send(SealerMessage::Shard(Box::new(shard)));
            }
            Err(error) => self.fail(&error.into()),
        }
    }

    fn end_shard_then(&mut self, message: SealerMessage) {
        self.catch_all(LaneWriter::end_shard);
        self.send(message);
    }

    fn send(&self, message: SealerMessage) {
        // The sealer does not end before this thread.
        let _ = self.sealer.send(message);
    }

    fn empty(&mut self) {
        if let Some(shard) = self.shard.take() {
            let info = shard.info();
            self.next = Safe { passes: info.first_pass, rows: info.first_row };
        }
    }

    /// Notes an error. The lane writes nothing more, because later rows would have a gap before them.
    fn fail(&mut self, error: &WriteError) {
        self.progress.fail(error.clone());
        self.shard = None;
    }
}
