//! Counts how long producers and consumers have waited for each other.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Waits {
    pub(crate) for_consumers: Duration,
    pub(crate) for_producers: Duration,
    /// The time up to which waits have been counted.
    counted: Instant,
    /// The number of consumers that have asked for a minibatch and wait for it.
    consumers: u32,
    /// Whether rows wait at the ring because consumers have not taken the ready minibatches.
    rows: bool,
}

impl Waits {
    pub(crate) fn new() -> Self {
        let zero = Duration::ZERO;
        Waits { for_consumers: zero, for_producers: zero, counted: Instant::now(), consumers: 0, rows: false }
    }

    /// Counts the waits since the last call. `could_come` says whether consumers had something to wait for in this time: no
    /// minibatch was ready, and one could become ready. Call this before `could_come`, or who waits, changes.
    pub(crate) fn count(&mut self, could_come: bool) {
        let now = Instant::now();
        let passed = now - self.counted;
        if could_come {
            self.for_producers += passed * self.consumers;
        }
        if self.rows {
            self.for_consumers += passed;
        }
        self.counted = now;
    }

    /// Notes that a consumer starts or stops waiting. `was` says whether it waited until now.
    pub(crate) fn consumer_waits(&mut self, was: &mut bool, is: bool) {
        self.consumers = self.consumers + u32::from(is) - u32::from(*was);
        *was = is;
    }

    /// Whether a consumer has asked for a minibatch and waits.
    pub(crate) fn any_consumer(&self) -> bool {
        self.consumers > 0
    }

    /// Notes whether rows wait at the ring.
    pub(crate) fn rows_wait(&mut self, wait: bool) {
        self.rows = wait;
    }
}
