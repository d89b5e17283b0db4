//! `tracing` events say which side waits for the other. There is only one test, because a subscriber is for the whole process.
#![allow(clippy::unwrap_used)]

mod common;

use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use activation_store::{Minibatches, RingStore, Stats};
use common::messages::Messages;
use common::{drain, rows, watchdog};
use futures::FutureExt;

/// A wait of at least this time is logged.
const MOMENT: Duration = Duration::from_millis(100);

/// Drains a consumer. Returns how many of the waits were long enough for an event.
fn drain_timed(minibatches: &mut Minibatches) -> usize {
    let mut long = 0;
    loop {
        let start = Instant::now();
        let next = minibatches.blocking().next();
        long += usize::from(start.elapsed() >= MOMENT);
        if next.is_none() {
            return long;
        }
    }
}

#[test]
fn each_side_says_that_it_has_waited_if_that_took_100_ms() {
    let messages = Messages::of_process();
    let count = |text| messages.count(text);
    let store = RingStore::builder().component("a", 1).batch_size(10).window(10).ready_frames(1).build().unwrap();
    let mut minibatches = store.minibatches();

    let until = |done: fn(&Stats) -> bool| {
        let monitor = store.monitor();
        watchdog(move || {
            while !done(&monitor.stats()) {
                thread::yield_now();
            }
        });
    };

    // A consumer polls, and gets a minibatch later.
    let context = &mut Context::from_waker(Waker::noop());
    let mut next = minibatches.next();
    assert!(next.poll_unpin(context).is_pending());
    until(|stats| stats.waited_for_producers > 2 * MOMENT);
    drop(store.extend(rows(0..100, 1), 0).unwrap());
    until(|stats| stats.frames_ready > 0 && stats.waited_for_consumers > 2 * MOMENT);
    assert_eq!(count("has waited"), 0, "it does not know of the minibatch yet");
    assert!(next.poll_unpin(context).is_ready());
    drop(next);
    assert_eq!(count("a consumer has waited for producers"), 1);
    store.close();
    drain(&mut minibatches);
    assert!(count("producers have waited for consumers") > 0);
    assert_eq!(count("no more minibatches become ready"), 1);

    // Short waits, thousands of them, give no event unless the machine stands still for 100 ms.
    let before = count("waited for");
    let store = RingStore::builder().component("a", 1).batch_size(1).window(1).ready_frames(1).build().unwrap();
    let mut minibatches = store.minibatches();
    let writing =
        thread::spawn(move || (0..3000).for_each(|row| store.extend_blocking(rows(row..row + 1, 1), 0).unwrap()));
    let long = drain_timed(&mut minibatches);
    writing.join().unwrap();
    assert!(count("a consumer has waited for producers") <= 1 + long, "{long} waits were long");
    assert!(count("waited for") - before < 300);
}
