//! Locks a mutex, and waits for a future on a plain thread.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The shortest wait for the other side that is logged, at level `DEBUG`, once it is over. In a training that runs well, one side waits for
/// some microseconds at every minibatch.
pub(crate) const WORTH_LOGGING: Duration = Duration::from_millis(100);

/// Locks a mutex. Ignores poison: no foreign code runs under a lock, so a panic elsewhere leaves the data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static WAKER: Waker = Waker::from(Arc::new(Unpark(thread::current())));
}

/// Polls on this thread until the result is ready. `None` if `deadline` comes first.
///
/// The blocking waits of `tokio` and `futures` panic inside a runtime, and have no time limit.
pub(crate) fn wait<T>(deadline: Option<Instant>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    WAKER.with(|waker| {
        let mut context = Context::from_waker(waker);
        loop {
            if let Poll::Ready(value) = poll(&mut context) {
                return Some(value);
            }
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(left) if left.is_zero() => return None,
                Some(left) => thread::park_timeout(left),
            }
        }
    })
}

/// Waits without a time limit. Calls `notice` once if the wait takes 10 s.
pub(crate) fn wait_long<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>, notice: impl FnOnce()) -> Option<T> {
    const LONG: Duration = Duration::from_secs(10);
    wait(Instant::now().checked_add(LONG), &mut poll).or_else(|| {
        notice();
        wait(None, poll)
    })
}

/// Waits for a future. `None` if `deadline` comes first.
pub(crate) fn wait_for<F: Future + Unpin>(future: &mut F, deadline: Option<Instant>) -> Option<F::Output> {
    wait(deadline, |context| Pin::new(&mut *future).poll(context))
}
