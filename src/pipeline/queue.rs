//! The queue from the producers to the writer, and the bound on the rows in it.
//!
//! A batch that is handed over takes its place in line at once, so that dropping a handle or giving up a wait loses
//! nothing; what waits at the bound is the caller.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};

use crate::pipeline::handle::Reply;
use crate::pipeline::sync::wait;
use crate::rows::batch::Batch;

/// What producers send to the writer, in order.
#[derive(Debug)]
pub(crate) enum Job {
    /// A lane begins.
    Open(u64, Arc<Budget>),
    Write(Write),
    /// A lane ends.
    Close(u64),
    /// Tell when everything before is in the ring.
    Flush(oneshot::Sender<()>),
    /// No more rows come.
    Finish,
}

/// A batch on its way.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) lane: u64,
    pub(crate) component: usize,
    pub(crate) batch: Batch,
    pub(crate) first_row: u64,
    pub(crate) reply: Reply,
}

/// Wakes the callers that wait for room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    notify: Notify,
    waiting: AtomicUsize,
    /// Whether a budget has come within its bound since callers were last made to look.
    opened: AtomicBool,
    /// Rows that have left the queue since then.
    left: AtomicUsize,
}

impl Room {
    /// Makes waiting callers look again if there is room where there was none, and `rows` rows have left the queue since
    /// they last did: callers that send single rows would otherwise be woken for every row.
    ///
    /// With `rows` = 0 nobody is left asleep who need not be.
    pub(crate) fn tell(&self, rows: usize) {
        if self.opened.load(Ordering::SeqCst) && self.left.load(Ordering::Relaxed) >= rows {
            self.opened.store(false, Ordering::SeqCst);
            self.left.store(0, Ordering::Relaxed);
            self.look_again();
        }
    }

    /// Makes waiting callers look again. Costs next to nothing while none wait.
    pub(crate) fn look_again(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.notify.notify_waiters();
        }
    }

    /// Blocks until `free`; `false` if `deadline` comes first.
    pub(crate) fn wait(&self, deadline: Option<Instant>, free: impl Fn() -> bool) -> bool {
        if free() {
            return true;
        }
        // Announced before looking once more, so that whoever makes room after that look sees somebody waiting.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut in_time = true;
        while in_time {
            let mut changed = pin!(self.notify.notified());
            changed.as_mut().enable();
            if free() {
                break;
            }
            in_time = wait(deadline, |context| changed.as_mut().poll(context)).is_some();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        in_time
    }
}

/// How many rows of each component are queued, and may be.
#[derive(Debug)]
pub(crate) struct Budget {
    bound: usize,
    room: Arc<Room>,
    queued: Vec<AtomicUsize>,
    /// The same over all lanes.
    total: Arc<Vec<AtomicUsize>>,
}

impl Budget {
    pub(crate) fn new(bound: usize, total: Arc<Vec<AtomicUsize>>, room: Arc<Room>) -> Self {
        Budget { bound, room, queued: total.iter().map(|_| AtomicUsize::new(0)).collect(), total }
    }

    /// Counts rows in, over the bound if need be.
    pub(crate) fn enter(&self, component: usize, rows: usize) {
        self.queued[component].fetch_add(rows, Ordering::SeqCst);
        self.total[component].fetch_add(rows, Ordering::SeqCst);
    }

    /// Counts rows in if there is room. A batch larger than the bound fits when nothing else is queued.
    pub(crate) fn try_enter(&self, component: usize, rows: usize) -> bool {
        let fits = |queued: usize| (queued == 0 || queued.saturating_add(rows) <= self.bound).then_some(queued + rows);
        let entered = self.queued[component].fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok();
        if entered {
            self.total[component].fetch_add(rows, Ordering::SeqCst);
        }
        entered
    }

    /// Counts rows out; [`Room::tell`] is to follow.
    pub(crate) fn leave(&self, component: usize, rows: usize) {
        let before = self.queued[component].fetch_sub(rows, Ordering::SeqCst);
        self.room.left.fetch_add(rows, Ordering::Relaxed);
        if before > self.bound && before - rows <= self.bound {
            self.room.opened.store(true, Ordering::SeqCst);
        }
        self.total[component].fetch_sub(rows, Ordering::SeqCst);
    }

    /// Whether the queue is within its bound.
    pub(crate) fn within(&self, component: usize) -> bool {
        self.queued(component) <= self.bound
    }

    pub(crate) fn queued(&self, component: usize) -> usize {
        self.queued[component].load(Ordering::SeqCst)
    }

    pub(crate) fn bound(&self) -> usize {
        self.bound
    }
}
