//! What two threads need to wait for each other: the handle of a write, waits on a plain thread, panics of foreign code.
//!
//! A caller gets a [`handle::WriteHandle`] and waits for it, as a future or on its thread. The thread that works for the caller
//! resolves it. Both run foreign code (a waker, the owner of a batch), whose panics are caught here.

pub(crate) mod handle;
pub(crate) mod panics;
pub(crate) mod thread;
pub(crate) mod wait;
