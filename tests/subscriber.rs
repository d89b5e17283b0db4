//! A subscriber of `tracing` events may look at the store that sends the events. This test is alone in its file, because a subscriber is
//! for the whole process.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use activation_store::{Monitor, RingStore};
use common::messages::Messages;
use common::{LIMIT, drain, rows, watchdog};

static MONITOR: Mutex<Option<Monitor>> = Mutex::new(None);

fn look() {
    let monitor = MONITOR.lock().unwrap().clone();
    monitor.into_iter().for_each(|monitor| drop((monitor.stats(), monitor.is_closed())));
}

#[test]
fn a_subscriber_may_look_at_the_store() {
    let messages = Messages::with_each(Some(look));
    watchdog({
        let messages = messages.clone();
        move || {
            let store =
                RingStore::builder().component("a", 2).component("b", 1).batch_size(8).window(8).ready_frames(1);
            let store = store.build().unwrap();
            *MONITOR.lock().unwrap() = Some(store.monitor());
            let mut minibatches = store.minibatches();
            assert!(minibatches.next_timeout(std::time::Duration::ZERO).is_err());
            // Rows lose their counterparts.
            let lane = store.producer().unwrap();
            drop(lane.extend(rows(0..3, 2), "a").unwrap());
            drop(lane);
            assert!(store.flush().wait().is_err());
            // Producers wait for the consumer.
            drop(store.extend_pass([("a", rows(0..100, 2)), ("b", rows(0..100, 1))]).unwrap());
            while store.stats().waited_for_consumers < Duration::from_millis(200) {
                thread::yield_now();
            }
            drop(minibatches.next_timeout(LIMIT).unwrap().unwrap());
            store.close();
            drain(&mut minibatches);
            assert!(messages.count("producers have waited for consumers") > 0);
        }
    });
    assert_eq!(messages.count("rows lost their counterparts"), 1);
    assert_eq!(messages.count("no more minibatches become ready"), 1);
}
