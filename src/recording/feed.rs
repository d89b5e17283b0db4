//! A ring store that a replay fills.

use std::path::Path;

use crate::disk::disk::Doing;
use crate::recording::error::RecordingError;
use crate::recording::replay::{ORDER_VERSION, Position, Replay};
use crate::ring_store::builder::{RingStoreBuilder, WhenFull};
use crate::ring_store::group::SpawnError;
use crate::ring_store::producer::Producer;
use crate::ring_store::ring_store::RingStore;
use crate::ring_store::snapshot::body::ReplayBody;
use crate::ring_store::snapshot::snapshot::Snapshot;
use crate::rows::error::WriteError;
use crate::rows::layout::Component;

/// The name of the lane.
const LANE: &str = "replay";

/// Rows of a pass. A resumed store needs rows again from the start of a pass.
const PASS: usize = 4096;

impl Replay {
    /// Builds a ring store, and fills it from this replay on a thread. The store has the chosen components of the recording. `builder` has
    /// the other settings.
    ///
    /// The stream ends after the last epoch. The last minibatch may have fewer rows. Every rank gets the same number of minibatches. If
    /// a rank would get one minibatch less than others, its last full minibatch is served in two parts. If a shard cannot be read, the
    /// stream serves the rows before it and ends with [`ReadError::Failed`](crate::ReadError::Failed).
    ///
    /// The window should hold the rows of several shards, because rows are mixed only within the window. See
    /// [`Plan::shared_rows`](crate::Plan::shared_rows). The call logs a warning if the window holds less than two shards.
    ///
    /// ```
    /// use activation_store::{Recorder, Recording, RingStore};
    /// use ndarray::Array2;
    ///
    /// # let dir = std::env::temp_dir().join(format!("replay-doc-{}", std::process::id()));
    /// let recorder = Recorder::builder().component("mlp", 4).shard_rows(64).create(&dir)?;
    /// for pass in 0..10 {
    ///     let _ = recorder.extend_pass([("mlp", Array2::<f32>::from_elem((50, 4), pass as f32))])?;
    /// }
    /// recorder.finish()?;
    ///
    /// let replay = Recording::open(&dir)?.replay().seed(7).epochs(2);
    /// let store = replay.into_ring(RingStore::builder().batch_size(32).window(256))?;
    /// let mut rows = 0;
    /// for minibatch in store.minibatches().blocking() {
    ///     rows += minibatch?.rows();
    /// }
    /// assert_eq!(rows, 1000);
    /// # std::fs::remove_dir_all(&dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RecordingError`] if the store cannot be built, if `builder` has components, or if the ranks cannot get the same number of
    /// minibatches. If the ranks have different numbers of rows, that can happen in these cases:
    ///
    /// - A minibatch has one row.
    /// - `drop_last` would drop a minibatch on some ranks only.
    /// - The window has fewer than three frames, or a frame has fewer than three rows.
    pub fn into_ring(self, builder: RingStoreBuilder) -> Result<RingStore, RecordingError> {
        let mut builder = self.configure(builder)?;
        // Rings of another epoch, or of another seed of the replay, deal in another order.
        let seed = builder.take_seed().unwrap_or_default() ^ self.stream();
        let builder = builder.seed(seed).filled_by(self.body());
        self.check_ranks(&builder)?;
        let store = builder.build()?;
        let (window, shard) = (store.window() as u64, self.largest_shard());
        if window < (2 * shard).min(self.rows_in_all()) {
            tracing::warn!(
                window,
                shard,
                "a minibatch comes from one or two shards: make the window 4 times as large as a shard, or record smaller ones"
            );
        }
        self.feed(store)
    }

    /// Builds a ring store that goes on from a light snapshot of a store that the same replay filled. It serves the minibatches that the
    /// first store would have served next, bit for bit. `dir` is the folder of the snapshots, or one snapshot.
    ///
    /// The replay must have the same recording, components, seed, first epoch and rank. It may have more epochs if it had not sent its
    /// last row when the snapshot was taken.
    ///
    /// # Errors
    /// [`RecordingError::Resume`] if no snapshot can be used, or the store cannot be built. [`RecordingError::Setting`] if the snapshot is
    /// of another replay, or `builder` has components.
    pub fn resume(self, builder: RingStoreBuilder, dir: impl AsRef<Path>) -> Result<RingStore, RecordingError> {
        let mut builder = self.configure(builder)?;
        let seed = builder.take_seed();
        let store = builder.resume(dir)?;
        self.check_resumed(&store, seed)?;
        self.feed(store)
    }

    /// Builds a ring store that goes on from a light snapshot that you keep yourself. See [`resume`](Self::resume).
    ///
    /// # Errors
    /// Same as [`resume`](Self::resume).
    pub fn resume_from(self, builder: RingStoreBuilder, snapshot: &Snapshot) -> Result<RingStore, RecordingError> {
        let mut builder = self.configure(builder)?;
        let seed = builder.take_seed();
        let store = builder.resume_from(snapshot)?;
        self.check_resumed(&store, seed)?;
        self.feed(store)
    }

    fn configure(&self, builder: RingStoreBuilder) -> Result<RingStoreBuilder, RecordingError> {
        if let Some(name) = builder.first_component() {
            let expected = "left out: the recording has the components; choose some with Replay::components";
            return Err(setting("a component of the ring", format!("{name:?}"), expected));
        }
        if let Some(position) = self.start_position() {
            let expected =
                "left out: a ring starts with the first epoch, or goes on from its snapshot (Replay::resume)";
            return Err(setting("starting_at", format!("{position:?}"), expected));
        }
        self.check_epochs()?;
        let with = |builder: RingStoreBuilder, component: &Component| {
            builder.component_of(&*component.name, component.features, component.dtype)
        };
        Ok(self.chosen().fold(builder, with).halves_last(self.has_fewest()))
    }

    /// Checks that the ring loses no row, and that all ranks can get the same number of minibatches.
    fn check_ranks(&self, builder: &RingStoreBuilder) -> Result<(), RecordingError> {
        let (fewest, most) = self.rows_of_ranks();
        let config = builder.clone().check()?;
        if config.when_full != WhenFull::Wait {
            let expected = "WhenFull::Wait: the replay waits for room, and loses no row";
            return Err(setting("when_full", format!("{:?}", config.when_full), expected));
        }
        let batch = config.batch_size as u64;
        let with = |value: &str| format!("{value}, with {fewest} rows on some ranks and {most} on others");
        if fewest == most {
            Ok(())
        } else if config.drop_last {
            let expected = "false, or another batch_size: some ranks would drop a minibatch that others serve";
            if most.is_multiple_of(batch) { Err(setting("drop_last", with("true"), expected)) } else { Ok(()) }
        } else if !fewest.is_multiple_of(batch) {
            Ok(())
        } else if batch == 1 {
            Err(setting("batch_size", with("1"), "2 or more, so that all ranks get as many minibatches"))
        } else if config.open_frames < 3 || config.layout.rows() < 3 {
            // The store can serve the last minibatch in two parts only if it is in the ring at the end. Three frames of three rows, which
            // fill one after the other, are never all empty at once.
            let expected = "larger, with a batch_size of 3 or more, so that all ranks get as many minibatches";
            Err(setting("window", with(&config.window().to_string()), expected))
        } else {
            Ok(())
        }
    }

    /// Checks that a resumed store is one that this replay filled, and that it has as many epochs as it may have.
    fn check_resumed(&self, store: &RingStore, seed: Option<u64>) -> Result<(), RecordingError> {
        self.check_same(store)?;
        let going: Vec<_> = store.shared().lock().books.listed().map(|record| (record.end, record.ended)).collect();
        let all = self.rows_in_all_epochs();
        let accepted = store.stats().components.first().map_or(0, |component| component.accepted);
        let (sent, has_ended) = going.first().copied().unwrap_or((accepted, true));
        if sent > all || has_ended && sent != all {
            return Err(self.other_end(sent, has_ended));
        }
        match seed {
            Some(seed) if seed ^ self.stream() != store.shared().config.seed => Err(setting(
                "the ring's seed",
                seed.to_string(),
                "as at the snapshot; leave it out, so that the snapshot's holds",
            )),
            _ => Ok(()),
        }
    }

    /// The error for a snapshot that this replay cannot go on from: `sent` rows had been dealt, and after them the lane had ended or not.
    fn other_end(&self, sent: u64, has_ended: bool) -> RecordingError {
        let epochs = self.epochs_in_all().to_string();
        let Position { epoch, row } = self.position(sent);
        if !has_ended {
            let all = self.rows_in_all_epochs();
            let expected = format!(
                "as many as when the snapshot was taken: by then {sent} rows had been served or were in the ring, and these epochs have {all}"
            );
            return setting("epochs", epochs, &expected);
        }
        if row == 0 {
            let expected = format!(
                "{}, as when the snapshot was taken: by then the last row had been sent, and the store had ended",
                epoch - self.position(0).epoch
            );
            return setting("epochs", epochs, &expected);
        }
        let value = format!("of a store that was closed after {sent} rows, before the end of epoch {epoch}");
        let expected = "of a store that was open or had ended: resume an earlier snapshot, or start the replay anew";
        setting("the snapshot", value, expected)
    }

    /// Checks that this replay filled the store of the snapshot.
    fn check_same(&self, store: &RingStore) -> Result<(), RecordingError> {
        let own = self.body();
        let (lanes, has_ended) = {
            let state = store.shared().lock();
            let names: Vec<_> = state.books.listed().map(|record| record.name.clone()).collect();
            (names, !state.books.journal.ended_names().is_empty())
        };
        let lanes: Vec<&str> = lanes.iter().map(|name| name.as_deref().unwrap_or("without a name")).collect();
        let found = match &store.shared().config.replay {
            Some(found) if *found == own => return Ok(()),
            Some(ReplayBody { version, .. }) if *version == ORDER_VERSION => "another".to_owned(),
            Some(ReplayBody { version, .. }) => return Err(other_order(*version)),
            // The first version had the fingerprint in the name of the lane.
            None if lanes.iter().any(|name| name.starts_with("replay ")) => return Err(other_order(1)),
            None if lanes.is_empty() && has_ended => {
                "none, or one of an earlier release: its lanes have ended".to_owned()
            }
            None => format!("none: its lanes are {lanes:?}"),
        };
        let expected = "this one, with the same recording (and no shard more), components, seed, first epoch and rank";
        Err(setting("the replay that filled the snapshot's store", found, expected))
    }

    fn feed(self, store: RingStore) -> Result<RingStore, RecordingError> {
        let row = store.resume_at().first().map_or(0, |at| at.row);
        if store.is_closed() {
            return Ok(store);
        }
        let replay = self.clone().starting_at(self.position(row));
        let dir = replay.dir().to_owned();
        let spawned = store.spawn_producer(LANE, move |lane| replay.send(&lane));
        spawned.or_else(|error| match error {
            SpawnError::Store(error) => Err(RecordingError::Write(error)),
            SpawnError::Thread(error) => Err(error).doing("start a thread to replay", &dir)?,
        })?;
        Ok(store)
    }

    fn send(self, lane: &Producer) -> Result<(), RecordingError> {
        for rows in self.start()? {
            for pass in rows?.pieces(PASS) {
                match lane.extend_pass_blocking(pass) {
                    Ok(()) => {}
                    Err(refused) if matches!(refused.error, WriteError::Closed(_)) => return Ok(()),
                    Err(refused) => return Err(refused.error.into()),
                }
            }
        }
        Ok(())
    }
}

/// The error for a snapshot whose shards came in the order of another version.
fn other_order(version: u32) -> RecordingError {
    let expected = format!("{ORDER_VERSION}: start the replay anew, or resume with the release that took the snapshot");
    setting("the version of the snapshot's order of shards", version.to_string(), &expected)
}

fn setting(what: &'static str, value: String, expected: &str) -> RecordingError {
    RecordingError::Setting { what, value, expected: expected.to_owned() }
}
