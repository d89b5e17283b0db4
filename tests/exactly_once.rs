//! Promise 4: each accepted row is served once or counted as dropped, in any sequence of calls.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::time::Duration;

use activation_store::{Batch, DType, Merge, Minibatch, Minibatches, Producer, ReadError, RingStore, WriteError};
use common::{LIMIT, assert_adds_up, id_rows, watchdog};
use ndarray::Array2;
use proptest::prelude::*;

const COMPONENTS: usize = 3;

#[derive(Clone, Debug)]
enum Action {
    /// Hands over rows of a component on a lane, and may drop the handle at once.
    Write {
        lane: usize,
        component: usize,
        rows: usize,
        forget: bool,
    },
    /// Hands over the same rows of all components, in some order.
    WriteAll {
        lane: usize,
        rows: usize,
        first: usize,
    },
    /// Hands over a whole pass, with its components in some order.
    Pass {
        lane: usize,
        rows: usize,
        first: usize,
        form: Form,
    },
    /// Hands over the rows that components lack.
    Level {
        lane: usize,
    },
    Open,
    Close {
        lane: usize,
    },
    Consume {
        minibatches: usize,
        keep: bool,
    },
    AnotherConsumer,
    DropConsumer,
    Empty,
    Flush,
}

/// The way in which a pass is handed over.
#[derive(Clone, Copy, Debug)]
enum Form {
    AtOnce,
    IfThereIsRoom,
    Gathered,
}

fn action() -> impl Strategy<Value = Action> {
    let (lane, component) = (0_usize..4, 0..COMPONENTS);
    let few = prop_oneof![4 => 1_usize..12, 1 => Just(0), 1 => 12_usize..120];
    let form = prop_oneof![Just(Form::AtOnce), Just(Form::IfThereIsRoom), Just(Form::Gathered)];
    prop_oneof![
        4 => (lane.clone(), component.clone(), few.clone(), any::<bool>())
            .prop_map(|(lane, component, rows, forget)| Action::Write { lane, component, rows, forget }),
        8 => (lane.clone(), few.clone(), component.clone()).prop_map(|(lane, rows, first)| Action::WriteAll { lane, rows, first }),
        8 => (lane.clone(), few, component, form)
            .prop_map(|(lane, rows, first, form)| Action::Pass { lane, rows, first, form }),
        2 => lane.clone().prop_map(|lane| Action::Level { lane }),
        1 => Just(Action::Open),
        1 => lane.prop_map(|lane| Action::Close { lane }),
        3 => (1_usize..4, any::<bool>()).prop_map(|(minibatches, keep)| Action::Consume { minibatches, keep }),
        1 => Just(Action::AnotherConsumer),
        1 => Just(Action::DropConsumer),
        1 => Just(Action::Empty),
        1 => Just(Action::Flush),
    ]
}

#[derive(Clone, Debug)]
struct Plan {
    batch_size: usize,
    open: usize,
    ready: usize,
    queue_rows: usize,
    drop_last: bool,
    merge: Merge,
    actions: Vec<Action>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let merge = prop_oneof![Just(Merge::Arrival), Just(Merge::RoundRobin)];
    let sizes = (1_usize..12, 1_usize..6, 1_usize..4, 1_usize..50, prop::bool::weighted(0.2), merge);
    (sizes, prop::collection::vec(action(), 1..40)).prop_map(
        |((batch_size, open, ready, queue_rows, drop_last, merge), actions)| Plan {
            batch_size,
            open,
            ready,
            queue_rows,
            drop_last,
            merge,
            actions,
        },
    )
}

/// A lane, and how many rows were handed over on it.
struct Lane {
    producer: Option<Producer>,
    handed: [usize; COMPONENTS],
    first_id: usize,
    /// Rows of every component that were discarded if they had not been served.
    emptied: usize,
}

impl Lane {
    /// Returns the next `rows` rows of a component.
    fn batch(&self, component: usize, rows: usize) -> Batch {
        let start = self.first_id + self.handed[component];
        match component {
            0 => id_rows(start..start + rows).into(),
            1 => common::rows(start..start + rows, 2).into(),
            _ => Array2::from_shape_fn((rows, 3), |(row, _)| (start + row) as u32).into(),
        }
    }

    fn whole(&self) -> usize {
        self.handed.into_iter().min().unwrap()
    }

    fn most(&self) -> usize {
        self.handed.into_iter().max().unwrap()
    }
}

struct Run {
    store: RingStore,
    lanes: Vec<Lane>,
    consumers: Vec<Minibatches>,
    kept: Vec<(Minibatch, Vec<usize>)>,
    served: Vec<usize>,
    served_before_emptied: usize,
}

impl Run {
    fn new(plan: &Plan) -> Self {
        let store = RingStore::builder()
            .component_of("a", 1, DType::I64)
            .component_of("b", 2, DType::F32)
            .component_of("c", 3, DType::U32)
            .batch_size(plan.batch_size)
            .window(plan.batch_size * plan.open)
            .ready_frames(plan.ready)
            .queue_rows(plan.queue_rows)
            .max_skew(1_000_000)
            .drop_last(plan.drop_last)
            .merge(plan.merge)
            .build()
            .unwrap();
        let mut run = Run {
            consumers: vec![store.minibatches()],
            store,
            lanes: Vec::new(),
            kept: Vec::new(),
            served: Vec::new(),
            served_before_emptied: 0,
        };
        run.open();
        run
    }

    fn open(&mut self) {
        let producer = Some(self.store.producer().unwrap());
        let first_id = self.lanes.len() << 16;
        self.lanes.push(Lane { producer, handed: [0; COMPONENTS], first_id, emptied: 0 });
    }

    fn write(&mut self, lane: usize, component: usize, rows: usize, forget: bool) {
        let lane = lane % self.lanes.len();
        let lane = &mut self.lanes[lane];
        let batch = lane.batch(component, rows);
        let Some(producer) = &lane.producer else { return };
        let handle = producer.extend(batch, component).unwrap();
        lane.handed[component] += rows;
        if !forget {
            // The flush may be done or not. Dropping it must not disturb the store.
            let _ = handle.is_done();
        }
    }

    fn pass(&mut self, lane: usize, rows: usize, first: usize, form: Form) {
        let lane = lane % self.lanes.len();
        let lane = &mut self.lanes[lane];
        let Some(producer) = &lane.producer else { return };
        let order = (0..COMPONENTS).map(|i| (first + i) % COMPONENTS);
        let pass = order.map(|component| (component, lane.batch(component, rows)));
        let outcome = match form {
            Form::AtOnce => producer.extend_pass(pass),
            Form::IfThereIsRoom => producer.try_extend_pass(pass),
            Form::Gathered => {
                let mut gathered = producer.begin_pass();
                pass.for_each(|(component, batch)| gathered.put(component, batch).unwrap());
                gathered.commit()
            }
        };
        let (whole, most) = (lane.whole(), lane.most());
        match outcome {
            Ok(_) => {
                assert_eq!(whole, most, "a pass was taken by an uneven lane");
                lane.handed = [whole + rows; COMPONENTS];
            }
            Err(refused) => {
                assert_eq!(refused.batches.len(), COMPONENTS);
                match refused.error {
                    WriteError::Full(_) => assert!(matches!(form, Form::IfThereIsRoom) && whole == most),
                    WriteError::Uneven { by, .. } => assert_eq!(by, (most - whole) as u64),
                    other => panic!("{other}"),
                }
            }
        }
    }

    fn take(&mut self, minibatch: Minibatch, keep: bool) {
        let ids = common::long_ids(&minibatch, 0);
        assert_eq!(ids, common::ids(&minibatch, 1), "components are not aligned");
        let c: Vec<usize> = minibatch.view::<u32>("c").unwrap().column(2).iter().map(|&id| id as usize).collect();
        assert_eq!(ids, c, "components are not aligned");
        for &id in &ids {
            let lane = &self.lanes[id >> 16];
            assert!(
                (lane.emptied..lane.whole()).contains(&(id - lane.first_id)),
                "{id} was discarded, or is not whole"
            );
        }
        self.served.extend(&ids);
        if keep {
            self.kept.push((minibatch, ids));
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Write { lane, component, rows, forget } => self.write(lane, component, rows, forget),
            Action::WriteAll { lane, rows, first } => {
                (0..COMPONENTS).for_each(|i| self.write(lane, (first + i) % COMPONENTS, rows, i > 0));
            }
            Action::Pass { lane, rows, first, form } => self.pass(lane, rows, first, form),
            Action::Level { lane } => {
                let of = &self.lanes[lane % self.lanes.len()];
                let lacks = of.handed.map(|handed| of.most() - handed);
                (0..COMPONENTS).for_each(|component| self.write(lane, component, lacks[component], false));
            }
            Action::Open => self.open(),
            Action::Close { lane } => {
                let lane = lane % self.lanes.len();
                self.lanes[lane].producer = None;
            }
            Action::Consume { minibatches, keep } => {
                for _ in 0..minibatches {
                    let last = self.consumers.len() - 1;
                    match self.consumers[last].next_timeout(Duration::ZERO) {
                        Ok(Some(minibatch)) => self.take(minibatch, keep),
                        Err(ReadError::Timeout(_)) => break,
                        other => panic!("{other:?}"),
                    }
                }
            }
            Action::AnotherConsumer => self.consumers.push(self.store.minibatches()),
            Action::DropConsumer if self.consumers.len() > 1 => drop(self.consumers.remove(0)),
            Action::DropConsumer => {}
            Action::Empty => {
                self.store.empty();
                self.served_before_emptied = self.served.len();
                self.lanes.iter_mut().for_each(|lane| lane.emptied = lane.most());
            }
            // The flush may not resolve while the ring is full.
            Action::Flush => drop(self.store.flush()),
        }
        assert_adds_up(&self.store.stats());
    }

    fn finish(mut self, plan: &Plan) {
        self.store.close();
        loop {
            match self.consumers[0].next_timeout(LIMIT) {
                Ok(Some(minibatch)) => self.take(minibatch, false),
                Ok(None) => break,
                Err(error) => panic!("{error}"),
            }
        }
        for (minibatch, ids) in &self.kept {
            assert_eq!(&common::long_ids(minibatch, 0), ids, "a kept minibatch has changed");
        }
        let distinct: HashSet<usize> = self.served.iter().copied().collect();
        assert_eq!(distinct.len(), self.served.len(), "a row was served twice");
        let stats = self.store.stats();
        assert_adds_up(&stats);
        let whole: usize = self.lanes.iter().map(|lane| lane.whole().saturating_sub(lane.emptied)).sum();
        let lost = self.served_before_emptied + whole - self.served.len();
        assert!(lost == 0 || plan.drop_last && lost < plan.batch_size, "{lost} rows were lost");
        if !plan.actions.iter().any(|action| matches!(action, Action::Empty)) {
            let uneven = self.lanes.iter().filter(|lane| lane.whole() < lane.most());
            let reported = std::iter::from_fn(|| self.store.flush().wait().err());
            assert_eq!(reported.count(), uneven.count(), "each lane's unmatched rows are reported once");
        }
        for (component, stats) in stats.components.iter().enumerate() {
            let handed: usize = self.lanes.iter().map(|lane| lane.handed[component]).sum();
            assert_eq!(stats.accepted, handed as u64, "every row handed over was accepted");
            assert_eq!(stats.served, self.served.len() as u64);
            assert_eq!((stats.resident, stats.queued), (0, 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_serves_every_row_once(plan in plan()) {
        let name = format!("{plan:?}");
        common::watchdog_for(&name, move || {
            let mut run = Run::new(&plan);
            plan.actions.iter().for_each(|action| run.act(action));
            run.finish(&plan);
        });
    }
}

/// Threads write and read while lanes come and go. In the end, the counts add up.
#[test]
fn many_threads_lose_nothing() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        watchdog(move || {
            let store = RingStore::builder()
                .component_of("id", 1, DType::I64)
                .component("a", 3)
                .batch_size(16)
                .window(128)
                .queue_rows(64)
                .max_skew(100_000)
                .merge(merge)
                .build()
                .unwrap();
            let consumers: Vec<_> = (0..3).map(|_| store.minibatches()).collect();
            let producers: Vec<_> = (0..4).map(|_| store.producer().unwrap()).collect();
            let served: Vec<Vec<usize>> = std::thread::scope(|scope| {
                for (i, producer) in producers.into_iter().enumerate() {
                    scope.spawn(move || {
                        let mut random = common::Random::new(i as u64);
                        let (mut at, end) = (i * 5000, (i + 1) * 5000);
                        while at < end {
                            let n = random.below(40).min(end - at);
                            drop(producer.extend(id_rows(at..at + n), 0).unwrap());
                            producer.extend_blocking(common::rows(at..at + n, 3), 1).unwrap();
                            at += n;
                        }
                    });
                }
                drop(store);
                let consumers: Vec<_> = consumers
                    .into_iter()
                    .map(|mut minibatches| {
                        scope.spawn(move || {
                            let ids = |minibatch: Result<Minibatch, ReadError>| {
                                let minibatch = minibatch.unwrap();
                                let ids = common::long_ids(&minibatch, 0);
                                assert_eq!(ids, common::ids(&minibatch, 1));
                                ids
                            };
                            minibatches.blocking().map(ids).collect::<Vec<_>>()
                        })
                    })
                    .collect();
                consumers.into_iter().flat_map(|consumer| consumer.join().unwrap()).collect()
            });
            common::assert_exactly(0..20_000, &served);
        });
    }
}
