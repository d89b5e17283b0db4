//! Who waits for whom, as `tracing` events. One test, for a subscriber is for the whole process.
#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use activation_store::RingStore;
use common::{LIMIT, drain, rows, watchdog};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Keeps the messages, from DEBUG on.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<String>>>);

impl Visit for Messages {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("activation_store") && *metadata.level() <= Level::DEBUG
    }
    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn each_side_says_that_it_waits_and_that_it_goes_on() {
    let messages = Messages::default();
    tracing::subscriber::set_global_default(messages.clone()).unwrap();
    let count = |text: &str| messages.0.lock().unwrap().iter().filter(|message| message.contains(text)).count();
    let store = RingStore::builder().component("a", 1).batch_size(10).window(10).ready_frames(1).build().unwrap();
    let mut minibatches = store.minibatches();

    assert!(minibatches.next_timeout(Duration::from_millis(1)).is_err());
    assert_eq!(count("a consumer waits for producers"), 1);
    assert_eq!(count("producers wait for consumers"), 0);

    drop(store.extend(rows(0..100, 1), 0).unwrap());
    watchdog({
        let messages = messages.clone();
        move || {
            while !messages.0.lock().unwrap().iter().any(|message| message.contains("producers wait for consumers")) {
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
