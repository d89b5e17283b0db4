//! How long each side has waited for the other.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Waits {
    pub(crate) for_consumers: Duration,
    pub(crate) for_producers: Duration,
    /// Up to when waits have been counted.
    counted: Instant,
    /// Consumers that have asked for a minibatch and not got one.
    consumers: u32,
    /// Rows wait at the ring because the consumers have not taken the ready minibatches.
    rows: bool,
}

impl Waits {
    pub(crate) fn new() -> Self {
        let zero = Duration::ZERO;
        Waits { for_consumers: zero, for_producers: zero, counted: Instant::now(), consumers: 0, rows: false }
    }

    /// Counts the waits since this was last called. `could_come` says whether consumers had something to wait for until now:
    /// no minibatch was ready, and one could become so. To be called before that, or what waits, changes.
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

    pub(crate) fn consumer_waits(&mut self, was: &mut bool, is: bool) {
        self.consumers = self.consumers + u32::from(is) - u32::from(*was);
        *was = is;
    }

    /// Whether a consumer has asked for a minibatch and waits.
    pub(crate) fn any_consumer(&self) -> bool {
        self.consumers > 0
    }

    pub(crate) fn rows_wait(&mut self, wait: bool) {
        self.rows = wait;
    }
}
