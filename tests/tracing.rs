//! `tracing` events say which side waits for the other. There is only one test, because a subscriber is for the whole process.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;
use std::time::Duration;

use activation_store::RingStore;
use common::messages::Messages;
use common::{LIMIT, drain, rows, watchdog};

#[test]
fn each_side_says_that_it_waits_and_that_it_goes_on() {
    let messages = Messages::of_process();
    let count = |text| messages.count(text);
    let store = RingStore::builder().component("a", 1).batch_size(10).window(10).ready_frames(1).build().unwrap();
    let mut minibatches = store.minibatches();

    assert!(minibatches.next_timeout(Duration::from_millis(1)).is_err());
    assert_eq!(count("a consumer waits for producers"), 1);
    assert_eq!(count("producers wait for consumers"), 0);

    drop(store.extend(rows(0..100, 1), 0).unwrap());
    watchdog({
        let messages = messages.clone();
        move || {
            while messages.count("producers wait for consumers") == 0 {
                thread::yield_now();
            }
        }
    });
    drop(minibatches.next_timeout(LIMIT).unwrap().unwrap());
    store.close();
    drain(&mut minibatches);
    assert!(count("the writer goes on") > 0);
    assert_eq!(count("no more minibatches become ready"), 1);
}
