//! The state as a snapshot has it: to take one, and to go on from one.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::disk::disk::Disk;
use crate::ring_store::builder::Config;
use crate::ring_store::core::{Shared, State};
use crate::ring_store::ledger::ComponentLedger;
use crate::ring_store::snapshot::body::{
    Body, ComponentStatsBody, ConfigBody, LogBody, PositionBody, StatsBody, TurnBody, Versions,
};
use crate::ring_store::snapshot::ended_names::EndedNames;
use crate::ring_store::snapshot::error::SnapshotError;
use crate::ring_store::snapshot::journal::Copied;
use crate::ring_store::snapshot::passes::Record;
use crate::ring_store::snapshot::restart::{check_policy, ledger, restarts_with, resumed_lanes, saved_lanes, turn};
use crate::ring_store::snapshot::saving::{Saved, Saving, SnapshotRequest};
use crate::ring_store::snapshot::snapshot::{Form, Snapshot};
use crate::rows::closed::ClosedBy;

/// The state at one moment, as it is copied under the mutex. What takes time for each entry of the journal comes later, without the
/// mutex.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The body, apart from what the journal says.
    body: Body,
    /// Shares its long parts with the store's books.
    books: Copied,
    /// The first row that the snapshot needs.
    from: u64,
    /// Whether every lane has ended, and every row was served.
    served: bool,
}

impl Taken {
    pub(crate) fn into_body(mut self) -> Body {
        self.body.set_log(self.books.since(self.from), !self.served);
        self.body
    }
}

impl Shared {
    /// Takes a light snapshot.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        Ok(Snapshot::new(self.take_light()?.into_body()))
    }

    fn take_light(&self) -> Result<Taken, SnapshotError> {
        check_policy(&self.config, Form::Light)?;
        let state = self.lock();
        state.check_saveable()?;
        Ok(state.take(&self.config, Form::Light))
    }

    /// Saves a snapshot, and resolves `reply` once it is on disk.
    pub(crate) fn save(
        &self,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        form: Form,
        reply: oneshot::Sender<Saved>,
    ) -> Result<(), SnapshotError> {
        let request = SnapshotRequest { disk, dir, reply, saved: self.saved.clone(), busy: Arc::default() };
        if form == Form::Light {
            let taken = self.take_light()?;
            request.write_light(|| Snapshot::new(taken.into_body()));
            return Ok(());
        }
        check_policy(&self.config, form)?;
        let mut state = self.lock();
        state.check_saveable()?;
        if let Some(to_replay) = state.ledger.to_replay {
            return Err(SnapshotError::DealsAgain { left: to_replay as u64 });
        }
        if state.saving.upgrade().is_some() {
            return Err(SnapshotError::InProgress);
        }
        state.saving = Arc::downgrade(&request.busy);
        state.frames.pin();
        if state.ended {
            drop(state);
            self.save_ready(request);
        } else {
            state.requests.snapshots.push(request);
            self.announce(&mut state);
        }
        Ok(())
    }

    /// Saves a store whose writer has ended: only ready frames are left.
    fn save_ready(&self, request: SnapshotRequest) {
        let (taken, ready) = {
            let mut state = self.lock();
            (state.take(&self.config, Form::Full), state.borrow_ready())
        };
        let body = taken.into_body();
        Saving::start_with(request, body, &self.config.layout, &ready.iter().collect::<Vec<_>>(), Vec::new());
        self.change(|state, afterwards| state.return_saved(ready, afterwards));
    }
}

impl State {
    /// Goes on where the saved store stood.
    pub(crate) fn resume(&mut self, config: &Config, body: &Body) {
        let own = body.lanes.iter().find(|lane| lane.lane == 0).map(|own| Record::from(own.log.clone()));
        let lanes = resumed_lanes(body).map(|(lane, log)| (lane, log.clone().into()));
        let opened = (body.lanes_opened, body.unnamed_lanes);
        self.books.resume(lanes, own, saved_lanes(body), opened, body.journal());
        self.turn = turn(body);
        let PositionBody { first_minibatch, next_minibatch, .. } = body.position;
        self.frames.go_on(first_minibatch, restarts_with(config, body), next_minibatch);
        self.ledger = ledger(body);
        (self.served_rows, self.minibatches_served) = (body.stats.served_rows, body.minibatches);
        self.waits.for_consumers = body.stats.waited_for_consumers;
        self.waits.for_producers = body.stats.waited_for_producers;
        if body.position.ended {
            // The ring is empty and takes no more rows, so the writer has nothing to do.
            self.status.close(ClosedBy::Close);
            self.ended = true;
        }
    }

    fn check_saveable(&self) -> Result<(), SnapshotError> {
        if let Some(lacks) = &self.lacks {
            return Err(SnapshotError::RowsMissing(lacks.clone()));
        }
        if self.status.discards() { self.status.check().map_err(SnapshotError::Ended) } else { Ok(()) }
    }

    /// The content of a snapshot without the rows: the state between two minibatches.
    pub(crate) fn take(&self, config: &Config, form: Form) -> Taken {
        let (next_minibatch, first_minibatch) = self.frames.ordinals();
        let served = self.ended && self.frames.ready_rows() == 0;
        // The full form contains the ready frames.
        let ended = served || self.ended && form == Form::Full;
        let (lanes_opened, unnamed_lanes) = self.books.opened();
        let books = self.books.copy();
        let journal = &books.journal;
        let from = if served { journal.dealt } else { self.needed_from() };
        let stats = |counts: &ComponentLedger| ComponentStatsBody {
            resent: counts.resent,
            dropped_oldest: counts.dropped.oldest,
            dropped_emptied: counts.dropped.emptied,
            dropped_aborted: counts.dropped.aborted,
            dropped_last: counts.dropped.last,
            dropped_unmatched: counts.dropped.unmatched,
            overflowed: counts.values.overflowed,
            not_finite: counts.values.not_finite,
        };
        let body = Body {
            versions: Versions::current(),
            run: Some(config.run.clone()),
            replay: config.replay.clone(),
            minibatches: self.minibatches_served,
            config: ConfigBody::from(config),
            position: PositionBody {
                emptied: journal.emptied,
                dealt: journal.dealt,
                first_minibatch,
                next_minibatch,
                completing_minibatch: self.frames.next_ordinal(),
                ended,
            },
            turn: self.turn.map(|(lane, rows)| TurnBody { lane, rows: rows as u64 }),
            lanes: Vec::new(),
            ended_names: EndedNames::default(),
            ended_lanes: Vec::new(),
            lanes_opened,
            unnamed_lanes,
            log: LogBody::default(),
            stats: StatsBody {
                components: self.ledger.components.iter().map(stats).collect(),
                served_rows: self.served_rows,
                whole_rows: (self.whole_rows() + self.ledger.to_replay.unwrap_or(0)) as u64,
                waited_for_consumers: self.waits.for_consumers,
                waited_for_producers: self.waits.for_producers,
            },
            saved: None,
        };
        Taken { body, books, from, served }
    }
}
