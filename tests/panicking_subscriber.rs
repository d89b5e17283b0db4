//! Promise 9: if a `tracing` subscriber panics, every caller still learns why the writer ended. This test is alone in its file, because
//! the subscriber is for the whole process.
#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use activation_store::{Batch, IndexError, RingStore, TensorStore};
use common::{LIMIT, rows, watchdog};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

struct Panics;

impl Subscriber for Panics {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, _: &Event<'_>) {
        panic!("the subscriber is broken");
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Memory that works on the thread that made it, and panics when the writer reads it.
struct Bomb(Vec<f32>, thread::ThreadId);

impl AsRef<[f32]> for Bomb {
    fn as_ref(&self) -> &[f32] {
        assert_eq!(thread::current().id(), self.1, "the bomb was read");
        &self.0
    }
}

fn bomb() -> Batch {
    Batch::from_owner(Bomb(vec![0.0; 16], thread::current().id()), 2).unwrap()
}

#[test]
fn the_cause_reaches_every_caller() {
    tracing::subscriber::set_global_default(Panics).unwrap();
    watchdog(|| {
        let store = RingStore::builder().component("a", 2).batch_size(10).window(40).build().unwrap();
        let mut minibatches = store.minibatches();
        let reading = thread::spawn(move || minibatches.next_timeout(LIMIT).unwrap_err());
        let error = store.extend(bomb(), 0).unwrap().wait().unwrap_err();
        assert!(error.to_string().contains("the bomb was read"), "{error}");
        assert!(reading.join().unwrap().is_poisoned());
        assert!(store.flush().wait().unwrap_err().is_poisoned());
        assert!(matches!(store.get(0), Err(IndexError::Poisoned { .. })));
        assert!(store.extend_blocking(rows(0..5, 2), 0).unwrap_err().error.is_poisoned());
        store.empty();

        let tensor = TensorStore::builder().component("a", 2).max_items(100).build().unwrap();
        assert!(tensor.extend(bomb(), 0).unwrap().wait().unwrap_err().is_poisoned());
        assert!(matches!(tensor.get(0), Err(IndexError::Poisoned { .. })));
    });
}
