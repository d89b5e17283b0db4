//! Promise 12: a resumed store serves, bit for bit, what the store would have served without the interruption.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::ops::Range;
use std::thread;

use activation_store::{
    DType, Form, Merge, Minibatches, Producer, ResumeAt, RingStore, RingStoreBuilder, Snapshot, SnapshotError,
    Snapshots, Stats,
};
use common::{Random, assert_adds_up, watchdog_for};
use ndarray::Array2;
use proptest::prelude::*;
use tempfile::TempDir;

/// The way in which a lane is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Style {
    Passes,
    /// One component after the other, in pieces.
    Pieces,
}

#[derive(Clone, Debug)]
struct Case {
    merge: Merge,
    /// The number of lanes. 0 means only the store's own lane.
    lanes: usize,
    named: bool,
    style: Style,
    /// Sets the rows of a lane. Lanes have different numbers of rows.
    rows: usize,
    batch_size: usize,
    window: usize,
    drop_last: bool,
    seed: u64,
    /// The part of all minibatches after which the store is dropped.
    stop: f64,
    /// Whether lanes are sent again from the start.
    again: bool,
    /// The forms of the first and the second snapshot.
    forms: [Form; 2],
}

/// Bits of all kinds, NaNs among them.
fn value(lane: usize, row: usize, feature: usize) -> f32 {
    let mut random = Random::new((lane * 1_000_003 + row) as u64 * 31 + feature as u64);
    f32::from_bits(random.below(u32::MAX as usize) as u32)
}

fn id(lane: usize, row: usize) -> i64 {
    ((lane as i64) << 32) + row as i64
}

fn activations(lane: usize, rows: &Range<usize>) -> Array2<f32> {
    Array2::from_shape_fn((rows.len(), 3), |(row, feature)| value(lane, rows.start + row, feature))
}

fn ids(lane: usize, rows: &Range<usize>) -> Array2<i64> {
    Array2::from_shape_fn((rows.len(), 1), |(row, _)| id(lane, rows.start + row))
}

impl Case {
    fn builder(&self) -> RingStoreBuilder {
        RingStore::builder()
            .component("a", 3)
            .component_of("id", 1, DType::I64)
            .batch_size(self.batch_size)
            .window(self.window)
            .queue_rows(40)
            .drop_last(self.drop_last)
            .merge(self.merge)
            .seed(self.seed)
    }

    fn rows(&self, lane: usize) -> usize {
        self.rows + lane * self.rows / 3
    }

    /// Returns the passes of a lane.
    fn passes(&self, lane: usize) -> Vec<Range<usize>> {
        let mut random = Random::new(self.seed + lane as u64);
        let (mut passes, mut start) = (Vec::new(), 0);
        while start < self.rows(lane) {
            // Every fifth pass or so has no rows.
            let end = (start + random.below(36).saturating_sub(6)).min(self.rows(lane));
            passes.push(start..end);
            start = end;
        }
        passes
    }

    /// Writes a lane from a pass and a row on, until the lane ends or the store is closed.
    fn write(&self, producer: &impl Lane, lane: usize, from: Option<&ResumeAt>) {
        let (first_pass, row) = from.map_or((0, 0), |at| (at.passes as usize, at.row as usize));
        for (number, pass) in self.passes(lane).into_iter().enumerate() {
            let written = match self.style {
                Style::Passes if number < first_pass => true,
                Style::Passes => {
                    assert!(pass.start >= row, "{lane}: pass {number} {pass:?} starts before row {row}");
                    producer.pass(activations(lane, &pass), ids(lane, &pass), number)
                }
                Style::Pieces => {
                    let pass = pass.start.max(row)..pass.end.max(row);
                    pass.is_empty() || producer.pieces(activations(lane, &pass), ids(lane, &pass))
                }
            };
            if !written {
                return;
            }
        }
    }

    /// Runs a new store, or a store that goes on from a snapshot. Stops when `stop` minibatches have been taken in all, or at the end.
    fn run(&self, from: Option<&Saved>, stop: Option<(usize, Form)>) -> Run {
        let store = match from {
            Some(Saved::Memory(bytes)) => {
                RingStore::builder().resume_from(&Snapshot::from_bytes(bytes).unwrap()).unwrap()
            }
            Some(Saved::Disk(dir)) => RingStore::builder().resume(dir.path()).unwrap(),
            None => self.builder().build().unwrap(),
        };
        let monitor = store.monitor();
        let mut minibatches = store.minibatches();
        let resume_at = store.resume_at().to_vec();
        let at = |lane: u64| if self.again { None } else { resume_at.iter().find(|at| at.lane.number == lane) };
        let mut run = Run { minibatches: Vec::new(), saved: None, stats: monitor.stats() };
        let resumed = from.is_some();
        thread::scope(|scope| {
            if self.lanes == 0 {
                let at = at(0).cloned();
                scope.spawn(move || {
                    if self.again && resumed {
                        let _ = store.send_again();
                    }
                    self.write(&store, 0, at.as_ref());
                });
            } else {
                let open = |lane: usize| match self.named {
                    true => store.producer_named(&format!("replica {lane}")),
                    false => store.producer(),
                };
                // If the saved store had served everything, the resumed store is closed.
                let producers: Vec<Producer> = (0..self.lanes).map_while(|lane| open(lane).ok()).collect();
                assert!(producers.len() == self.lanes || resumed && resume_at.is_empty());
                for (lane, producer) in producers.into_iter().enumerate() {
                    let at = at(lane as u64 + 1).cloned();
                    let gone = resumed && !resume_at.iter().any(|at| at.lane.number == lane as u64 + 1);
                    scope.spawn(move || {
                        if self.again && resumed {
                            let _ = producer.send_again();
                        }
                        assert!(!gone || producer.extend(activations(lane, &(0..1)), "a").is_err());
                        if !gone {
                            self.write(&producer, lane, at.as_ref());
                        }
                    });
                }
                drop(store);
            }
            let taken = monitor.stats().minibatches_served as usize;
            let most = stop.map_or(usize::MAX, |(stop, _)| stop - taken);
            for minibatch in minibatches.blocking().take(most) {
                let minibatch = minibatch.unwrap();
                assert_eq!(minibatch.ordinal() as usize, taken + run.minibatches.len());
                run.minibatches.push(Bits {
                    a: minibatch.bytes("a").unwrap().to_vec(),
                    ids: minibatch.view::<i64>("id").unwrap().iter().copied().collect(),
                });
            }
            run.stats = monitor.stats();
            assert_adds_up(&run.stats);
            run.saved = stop.map(|(stop, form)| save(&mut minibatches, form, stop));
            drop(minibatches);
        });
        run
    }
}

struct Run {
    minibatches: Vec<Bits>,
    saved: Option<Saved>,
    stats: Stats,
}

enum Saved {
    Memory(Vec<u8>),
    Disk(TempDir),
}

impl Saved {
    fn resume_at(&self) -> Vec<ResumeAt> {
        match self {
            Saved::Memory(bytes) => Snapshot::from_bytes(bytes).unwrap().resume_at(),
            Saved::Disk(dir) => Snapshots::new(dir.path()).newest().unwrap().resume_at(),
        }
    }
}

fn save(minibatches: &mut Minibatches, form: Form, k: usize) -> Saved {
    let dir = tempfile::tempdir().unwrap();
    let handle = match minibatches.snapshot(dir.path(), form) {
        Ok(handle) => handle,
        // The store cannot take a full snapshot yet.
        Err(SnapshotError::DealsAgain { .. }) => minibatches.snapshot(dir.path(), Form::Light).unwrap(),
        Err(error) => panic!("{error}"),
    };
    let state = minibatches.state().unwrap();
    assert_eq!(state.minibatches() as usize, k);
    // The pipeline goes on during this time.
    minibatches.blocking().take(k % 4).for_each(|minibatch| assert!(minibatch.is_ok()));
    let folder = handle.wait().unwrap();
    assert_eq!(folder, dir.path().join(format!("snapshot-{k}")));
    assert_eq!(Snapshots::new(dir.path()).list().unwrap(), [(k as u64, folder)]);
    if form == Form::Light && k.is_multiple_of(2) {
        return Saved::Memory(state.to_bytes());
    }
    Saved::Disk(dir)
}

#[derive(Debug, PartialEq)]
struct Bits {
    a: Vec<u8>,
    ids: Vec<i64>,
}

/// A lane that may be the store's own.
trait Lane {
    fn pass(&self, a: Array2<f32>, ids: Array2<i64>, number: usize) -> bool;
    fn pieces(&self, a: Array2<f32>, ids: Array2<i64>) -> bool;
}

macro_rules! lane {
    ($type:ty) => {
        impl Lane for $type {
            fn pass(&self, a: Array2<f32>, ids: Array2<i64>, number: usize) -> bool {
                let mut pass = self.begin_pass();
                pass.attach(number.to_string().into_bytes());
                pass.put("a", a).unwrap();
                pass.put("id", ids).unwrap();
                pass.commit_blocking().is_ok()
            }

            fn pieces(&self, a: Array2<f32>, ids: Array2<i64>) -> bool {
                self.extend_blocking(a, "a").is_ok() && self.extend_blocking(ids, "id").is_ok()
            }
        }
    };
}
lane!(RingStore);
lane!(Producer);

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Light), Just(Form::Full)]
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1_usize..40, 1_usize..12, 0_usize..3, 20_usize..900);
    let style = prop_oneof![Just(Style::Passes), Just(Style::Pieces)];
    let merge = prop_oneof![Just(Merge::Arrival), Just(Merge::RoundRobin)];
    (shape, style, merge, any::<[bool; 3]>(), any::<u16>(), 0.0..1.1_f64, [form(), form()]).prop_map(
        |((batch_size, frames, lanes, rows), style, merge, [named, drop_last, again], seed, stop, forms)| Case {
            merge,
            lanes: if lanes == 0 { 0 } else { 2 * lanes - 1 },
            named,
            style,
            rows,
            batch_size,
            window: batch_size * frames,
            drop_last,
            seed: seed.into(),
            stop,
            again,
            forms,
        },
    )
}

fn check(case: &Case) {
    let whole = case.run(None, None);
    let all = whole.minibatches.len();
    let k = ((all as f64 * case.stop) as usize).min(all);
    let first = case.run(None, Some((k, case.forms[0])));
    let saved = first.saved.unwrap();
    // The store is saved and resumed once more, in the middle of the minibatches that are left.
    let j = k + (all - k) / 2;
    let second = case.run(Some(&saved), Some((j, case.forms[1])));
    if case.style == Style::Passes {
        for at in [Some(&saved), second.saved.as_ref()].into_iter().flatten().flat_map(Saved::resume_at) {
            let value = at.passes.checked_sub(1).map(|last| last.to_string().into_bytes().into_boxed_slice());
            assert_eq!(at.value, value);
        }
    }
    let third = case.run(second.saved.as_ref(), None);
    let parts: Vec<&Bits> =
        [&first.minibatches, &second.minibatches, &third.minibatches].into_iter().flatten().collect();
    if case.merge == Merge::RoundRobin || case.lanes < 2 {
        assert_eq!(parts.len(), all);
        for (n, (part, whole)) in parts.iter().zip(&whole.minibatches).enumerate() {
            assert!(**part == *whole, "minibatch {n} differs, of {k} + {} + {}", j - k, all - j);
        }
        let (resumed, uninterrupted) = (&third.stats.components, &whole.stats.components);
        for (resumed, uninterrupted) in resumed.iter().zip(uninterrupted) {
            assert_eq!((resumed.accepted, resumed.served), (uninterrupted.accepted, uninterrupted.served));
        }
    } else {
        let served: Vec<i64> = parts.iter().flat_map(|bits| bits.ids.iter().copied()).collect();
        let unique: BTreeSet<i64> = served.iter().copied().collect();
        assert_eq!(served.len(), unique.len(), "no row comes twice");
        let rows: usize = (0..case.lanes).map(|lane| case.rows(lane)).sum();
        let lost = rows - unique.len();
        assert!(if case.drop_last { lost < case.batch_size } else { lost == 0 }, "{lost} rows are lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_resumed_run_serves_what_the_uninterrupted_one_would(case in cases()) {
        watchdog_for(&format!("{case:?}"), move || check(&case));
    }
}
