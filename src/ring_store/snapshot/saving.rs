//! Writes a full snapshot while the pipeline runs: the writer copies frames, and another thread writes the copies to disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::oneshot;

use crate::disk::disk::Disk;
use crate::memory::frame::Frame;
use crate::ring_store::ready::ReadyFrame;
use crate::ring_store::snapshot::body::{Body, SavedFrame};
use crate::ring_store::snapshot::error::SnapshotError;
use crate::ring_store::snapshot::files::{FullWriter, write_light};
use crate::ring_store::snapshot::snapshot::Snapshot;
use crate::rows::closed::ClosedBy;
use crate::rows::error::WriteError;
use crate::rows::layout::Layout;
use crate::waiting::panics::{discard, message};

/// The outcome of saving a snapshot: its folder, or an error.
pub(crate) type Saved = Result<PathBuf, SnapshotError>;

/// A snapshot that was asked for.
#[derive(Debug)]
pub(crate) struct SnapshotRequest {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) reply: oneshot::Sender<Saved>,
    /// The largest number of minibatches of the store's snapshots so far.
    pub(crate) saved: Arc<AtomicU64>,
    /// Held until the snapshot is written, because only one full snapshot is written at a time.
    pub(crate) busy: Arc<()>,
}

impl SnapshotRequest {
    /// Answers the caller with `error`.
    pub(crate) fn refuse(self, error: SnapshotError) {
        // The caller may have dropped its handle.
        let _ = self.reply.send(Err(error));
    }

    /// Makes a snapshot without rows, and writes it, on a thread of its own.
    pub(crate) fn write_light(self, snapshot: impl FnOnce() -> Snapshot + Send + 'static) {
        let SnapshotRequest { disk, dir, reply, saved, busy } = self;
        on_thread(reply, move || {
            let _busy = busy;
            write_light(disk, &dir, &snapshot(), &saved)
        });
    }
}

/// A full snapshot that is being written.
pub(crate) struct Saving {
    /// The rows that each open frame held at the snapshot's position, until they are saved.
    left: Vec<u32>,
    /// The frames to write, or why no more of them come.
    full: Sender<Result<(SavedFrame, Frame), WriteError>>,
    free: Receiver<Frame>,
}

impl Saving {
    /// Saves the ready frames, and starts to save the open frames. `left` says how many rows of each open frame to save. Waits until
    /// the ready frames are copied. `None` if this fails: then the caller of the snapshot gets the error.
    pub(crate) fn start_with(
        request: SnapshotRequest,
        body: Body,
        layout: &Arc<Layout>,
        ready: &[&ReadyFrame],
        left: Vec<u32>,
    ) -> Option<Self> {
        let buffers = match Frame::allocate(layout, ready.len() + 2, "the copies of a snapshot") {
            Ok(buffers) => buffers,
            Err(error) => {
                request.refuse(SnapshotError::Memory(error));
                return None;
            }
        };
        let frames = ready.len() + left.iter().filter(|&&rows| rows > 0).count();
        let ready_rows = ready.iter().map(|frame| frame.rows());
        let rows: usize = ready_rows.chain(left.iter().map(|&rows| rows as usize)).sum();
        let saving = Saving::start(request, body, layout.clone(), (frames, rows as u64), left, buffers);
        for frame in ready {
            let mut buffer = saving.buffer(true)?;
            frame.save(&mut buffer);
            saving.write(SavedFrame::Ready { first_minibatch: frame.ordinal(), rows: frame.rows() }, buffer);
        }
        Some(saving)
    }

    /// Starts the thread that writes. It writes `frames` frames with `rows` rows in all. `left` says how many rows of each open frame
    /// to save.
    fn start(
        request: SnapshotRequest,
        body: Body,
        layout: Arc<Layout>,
        (frames, rows): (usize, u64),
        left: Vec<u32>,
        buffers: Vec<Frame>,
    ) -> Self {
        let (full, to_write) = unbounded::<Result<(SavedFrame, Frame), WriteError>>();
        let (give_back, free) = unbounded();
        buffers.into_iter().for_each(|buffer| give_back.send(buffer).unwrap_or_default());
        let SnapshotRequest { disk, dir, reply, saved, busy } = request;
        on_thread(reply, move || {
            let _busy = busy;
            let mut writer = FullWriter::begin(disk, &dir, body, &layout, rows, &saved)?;
            for _ in 0..frames {
                // The writer says why it has ended. It sends nothing only if there is no thread for it.
                let next = to_write.recv().unwrap_or_else(|_| Err(ClosedBy::Abort.into()));
                let (saved, buffer) = next.map_err(SnapshotError::Ended)?;
                writer.append(saved, &buffer)?;
                let _ = give_back.send(buffer);
            }
            Ok(writer.finish()?)
        });
        Saving { left, full, free }
    }

    /// Takes a free buffer. With `wait`, blocks until one is free, and returns `None` only if the snapshot has failed. Without
    /// `wait`, also returns `None` if no buffer is free.
    pub(crate) fn buffer(&self, wait: bool) -> Option<Frame> {
        if wait { self.free.recv().ok() } else { self.free.try_recv().ok() }
    }

    /// Hands the first rows of a buffer to the thread, as many as `saved` says.
    pub(crate) fn write(&self, saved: SavedFrame, buffer: Frame) {
        // An error means that the snapshot has failed. Then the snapshot's handle says why.
        let _ = self.full.send(Ok((saved, buffer)));
    }

    /// Fails the snapshot, because the store discards its rows.
    pub(crate) fn fail(self, error: WriteError) {
        let _ = self.full.send(Err(error));
    }

    /// The next open frame to save.
    pub(crate) fn next(&self) -> Option<usize> {
        self.left.iter().position(|&rows| rows > 0)
    }

    /// The rows of an open frame that are not saved yet.
    pub(crate) fn left(&self, frame: usize) -> usize {
        self.left[frame] as usize
    }

    /// Notes that an open frame is saved.
    pub(crate) fn saved(&mut self, frame: usize) {
        self.left[frame] = 0;
    }
}

/// Runs `write` on a thread of its own, and sends its outcome to `reply`.
fn on_thread(reply: oneshot::Sender<Saved>, write: impl FnOnce() -> Saved + Send + 'static) {
    let (hand_over, taken) = crossbeam_channel::bounded(1);
    let thread = thread::Builder::new().name("activation-store snapshot".to_owned()).spawn(move || {
        let reply: Option<oneshot::Sender<Saved>> = taken.recv().ok();
        let saved = catch_unwind(AssertUnwindSafe(write)).unwrap_or_else(|panic| {
            let cause = message(&*panic).into();
            discard(panic);
            Err(SnapshotError::Panicked { cause })
        });
        reply.into_iter().for_each(|reply| {
            let _ = reply.send(saved.clone());
        });
    });
    match thread {
        Ok(_) => {
            let _ = hand_over.send(reply);
        }
        Err(error) => {
            let _ = reply.send(Err(SnapshotError::Thread { reason: error.to_string() }));
        }
    }
}
