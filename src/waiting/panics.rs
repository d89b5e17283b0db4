//! Foreign code that panics: a panic in one piece does not stop the others.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The payload of a panic.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Runs pieces of foreign code (a waker, the destructor of a batch's owner). A panic in one piece does not stop the others.
#[derive(Default)]
pub(crate) struct Panics(pub(crate) Option<Panic>);

impl Panics {
    /// Runs one piece of foreign code. Keeps its panic if it is the first.
    pub(crate) fn catch(&mut self, foreign: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(foreign)) {
            match &self.0 {
                None => self.0 = Some(panic),
                Some(_) => discard(panic),
            }
        }
    }

    /// Returns the first panic as the error, if a piece panicked.
    pub(crate) fn first(mut self) -> Result<(), Panic> {
        self.0.take().map_or(Ok(()), Err)
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(discard);
    }
}

/// Drops the payload of a panic. Leaks a payload of the user's own type, because its destructor may panic, too.
pub(crate) fn discard(panic: Panic) {
    if !panic.is::<String>() && !panic.is::<&str>() {
        mem::forget(panic);
    }
}

/// The message of a panic.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}
