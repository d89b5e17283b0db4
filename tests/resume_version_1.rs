//! A snapshot in version 1 of the format, which an earlier release has written, still resumes.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use activation_store::{Form, Producer, RingStore, Snapshot, Snapshots, WriteError};
use common::watchdog;
use ndarray::Array2;
use tempfile::TempDir;

/// Seven lanes: the store's own; "a", ended; one without a name, ended; "a" again, ended, some of its rows needed; one without a name;
/// "b"; one without a name and without rows.
const SNAPSHOT: &str = concat!(
    r#"{"format":"activation-store snapshot","format_version":1,"dealing_version":1,"crate_version":"0.1.0","minibatches":7,"config":{"components":[{"name":"mlp","features":1,"dtype":"f32"}],"batch_size":8,"window":32,"ready_frames":2,"queue_rows":16,"max_skew":16,"seed":3,"drop_last":false,"when_full":"wait","merge":"arrival"},"position":{"emptied":0,"dealt":66,"first_minibatch":0,"next_minibatch":7,"completing_minibatch":7,"ended":false},"turn":null,"lanes":[{"lane":0,"name":null,"start":0,"end":6,"ended":false,"passes_before":0,"passes":[{"first_row":0,"rows":4},{"first_row":4,"rows":4}]},{"lane":3,"name":"a","start":4,"end":20,"ended":true,"passes_before":0,"passes":[{"first_row":0,"rows":10,"value":"03"},{"first_row":10,"rows":10,"value":"04"}]},{"lane":4,"name":null,"start":0,"end":5,"ended":false,"passes_before":0,"passes":[{"first_row":0,"rows":5,"value":"0a"}]},{"lane":5,"name":"b","start":0,"end":3,"ended":false,"passes_before":0,"passes":[{"first_row":0,"rows":3,"value":"14"}]},{"lane":6,"name":null,"start":0,"end":0,"ended":false,"passes_before":0,"passes":[]}],"ended_lanes":[{"lane":1,"name":"a"},{"lane":3,"name":"a"}],"lanes_opened":7,"log":{"from":36,"segments":[[3,4,16],[0,0,4],[4,0,5],[5,0,3],[0,4,2]]},"stats":{"components":[{"resent":0,"dropped_oldest":0,"dropped_emptied":0,"dropped_aborted":0,"dropped_last":0,"dropped_unmatched":0}],"served_rows":56,"whole_rows":10,"waited_for_consumers":{"secs":0,"nanos":0},"waited_for_producers":{"secs":0,"nanos":171408}},"saved":null}"#,
    "\n",
    r#"{"xxh3":"1cc6384974312a7e"}"#,
    "\n",
);

fn write(lane: &Producer, rows: std::ops::Range<u16>) -> Result<(), WriteError> {
    let rows = Array2::from_shape_fn((rows.len(), 1), |(row, _)| f32::from(rows.start + row as u16));
    lane.extend_pass([(0, rows)]).map(drop).map_err(|refused| refused.error)
}

/// Sends the rows that the resumed store lacks, in the order in which the saved store was to get them.
fn send_the_rest(store: &RingStore, again: &Producer, open: &Producer, b: &Producer) {
    write(again, 32..42).unwrap();
    write(again, 42..52).unwrap();
    for first in [52, 64, 76] {
        let own = Array2::from_shape_fn((4, 1), |(row, _)| f32::from(first + row as u16));
        drop(store.extend_pass([(0, own)]).unwrap());
        write(open, first + 4..first + 9).unwrap();
        write(b, first + 9..first + 12).unwrap();
    }
}

#[test]
fn every_lane_is_known_and_every_row_is_served_once() {
    watchdog(|| {
        let snapshot = Snapshot::from_bytes(SNAPSHOT.as_bytes()).unwrap();
        let read_again = Snapshot::from_bytes(&snapshot.to_bytes()).unwrap();
        assert_eq!(read_again, snapshot);
        let at: Vec<_> = snapshot.resume_at().iter().map(|at| (at.lane.number, at.passes, at.ends_at)).collect();
        assert_eq!(at, [(0, 0, None), (3, 0, Some(20)), (4, 0, None), (5, 0, None), (6, 0, None)]);

        let store = RingStore::builder().resume_from(&read_again).unwrap();
        let mut minibatches = store.minibatches();
        let [again, a] = [0, 1].map(|_| store.producer_named("a").unwrap());
        let [ended, open, last] = [0, 1, 2].map(|_| store.producer().unwrap());
        let b = store.producer_named("b").unwrap();
        for ended in [a, ended] {
            assert!(matches!(write(&ended, 0..1), Err(WriteError::Closed(_))));
        }
        send_the_rest(&store, &again, &open, &b);
        drop((again, open, b, last));
        store.close();
        let mut served = Vec::new();
        for minibatch in minibatches.blocking() {
            served.extend(minibatch.unwrap().view::<f32>(0).unwrap().iter().map(|&row| row as u16));
        }
        let distinct: BTreeSet<u16> = served.iter().copied().collect();
        // 56 of the 88 rows were served before.
        assert_eq!((served.len(), distinct.len()), (88 - 56, 88 - 56));
        let not_dealt = [66..68, 68..73, 73..76, 76..88].into_iter().flatten();
        assert!(not_dealt.into_iter().all(|row| distinct.contains(&row)), "{distinct:?}");
    });
}

/// A snapshot of that version says nothing about its run. All stores that are resumed from it belong to one run.
#[test]
fn two_stores_that_are_resumed_from_it_belong_to_one_run() {
    watchdog(|| {
        let dir = TempDir::new().unwrap();
        for k in [8, 9] {
            let store = RingStore::builder().resume_from(&Snapshot::from_bytes(SNAPSHOT.as_bytes()).unwrap()).unwrap();
            let mut minibatches = store.minibatches();
            let [again, _a] = [0, 1].map(|_| store.producer_named("a").unwrap());
            let [_ended, open, _last] = [0, 1, 2].map(|_| store.producer().unwrap());
            let b = store.producer_named("b").unwrap();
            send_the_rest(&store, &again, &open, &b);
            while store.stats().minibatches_served < k {
                let _ = minibatches.blocking().next().unwrap().unwrap();
            }
            let _ = minibatches.snapshot(dir.path(), Form::Light).unwrap().wait().unwrap();
        }
        let listed = Snapshots::new(dir.path()).list().unwrap();
        assert_eq!(listed.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [8, 9]);
    });
}
