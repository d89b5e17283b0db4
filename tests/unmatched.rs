//! If rows lose their counterparts, there is one warning, all rows are counted, and a flush reports each lane once. There is only one
//! test, because a subscriber is for the whole process.
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{Merge, RingStore, WriteError};
use common::messages::Messages;
use common::{rows, watchdog};

#[test]
fn lost_rows_give_one_warning_and_one_report_for_each_lane() {
    let messages = Messages::of_process();
    for (stores, merge) in [Merge::Arrival, Merge::RoundRobin].into_iter().enumerate() {
        let messages = messages.clone();
        watchdog(move || {
            let store = RingStore::builder().component("a", 2).component("b", 1).batch_size(8).window(64).merge(merge);
            let store = store.build().unwrap();
            let _minibatches = store.minibatches();
            let mut reported = Vec::new();
            for lost in 1..10 {
                let lane = store.producer().unwrap();
                drop(lane.extend(rows(0..lost, 2), "a").unwrap());
                drop(lane.extend(rows(0..lost / 2, 1), "b").unwrap());
                drop(lane);
                if lost % 3 == 0 {
                    // The flushes report three lanes, the oldest first, each once.
                    reported.extend(std::iter::from_fn(|| store.flush().wait().err()));
                }
            }
            // An even lane loses no rows.
            let lane = store.producer().unwrap();
            drop(lane.extend_pass([("a", rows(0..3, 2)), ("b", rows(0..3, 1))]).unwrap());
            drop(lane);
            store.flush().wait().unwrap();
            for (error, lost) in reported.iter().zip(1_u64..) {
                let WriteError::Unmatched { present, missing, rows } = error else { panic!("{error}") };
                assert_eq!((present.index, missing.index, *rows), (0, 1, lost - lost / 2));
                assert!(error.to_string().contains("had no counterpart in component 1 (\"b\")"), "{error}");
            }
            assert_eq!(reported.len(), 9);
            let stats = store.stats();
            assert_eq!(stats.components[0].dropped.unmatched, (1..10).map(|lost| lost - lost / 2).sum::<u64>());
            assert_eq!(stats.components[1].dropped.unmatched, 0);
            assert_eq!(messages.count("rows lost their counterparts"), stores + 1, "once for each store");
        });
    }
}
