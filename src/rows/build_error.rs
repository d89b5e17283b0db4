//! A store cannot be built: a setting is wrong, or there is no memory or thread.

use std::borrow::Cow;
use std::sync::Arc;

/// Returned when a store cannot be built as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A setting is 0, and it must be at least 1.
    #[error("{what} is 0; it must be at least 1")]
    Zero {
        /// The setting.
        what: Cow<'static, str>,
    },
    /// The store has no component.
    #[error("the store has no component; add one with .component(name, features)")]
    NoComponents,
    /// Two components share a name.
    #[error("two components are named {name:?}; names must differ")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// The window holds less than one minibatch.
    #[error(
        "window is {window} rows, less than one minibatch of {batch_size}; use a window of at least {batch_size}, better many times that"
    )]
    WindowTooSmall {
        /// The window, in rows.
        window: usize,
        /// The minibatch, in rows.
        batch_size: usize,
    },
    /// The memory is too small for a window of one minibatch.
    #[error(
        "memory is {memory} bytes, but a window of one minibatch of {batch_size} rows needs {needed}, ready frames included; \
         use at least that, a smaller batch_size or fewer ready_frames"
    )]
    MemoryTooSmall {
        /// The memory, in bytes.
        memory: usize,
        /// The minibatch, in rows.
        batch_size: usize,
        /// The least memory that holds such a window, in bytes.
        needed: usize,
    },
    /// The configured sizes are larger than the address space.
    #[error("{what} overflows: {rows} rows of {row_bytes} bytes; use fewer rows or features")]
    Overflow {
        /// What the memory is for.
        what: &'static str,
        /// The configured rows.
        rows: usize,
        /// Bytes of one row of all components, or the largest number if there are more.
        row_bytes: usize,
    },
    /// A setting is above its limit.
    #[error("{what} is {value}; it must be at most {limit}")]
    TooMany {
        /// The setting.
        what: &'static str,
        /// The value of the setting.
        value: usize,
        /// The largest value that the setting can have.
        limit: usize,
    },
    /// The operating system does not provide the memory.
    #[error(
        "{bytes} bytes for {what} ({rows} rows of {row_bytes} bytes) cannot be allocated; use fewer rows or features, or a smaller dtype"
    )]
    Allocation {
        /// What the memory is for.
        what: &'static str,
        /// How many bytes.
        bytes: usize,
        /// For how many rows.
        rows: usize,
        /// Bytes of one row of all components.
        row_bytes: usize,
    },
    /// The store needs more than nine tenths of the memory that is available now.
    #[error(
        "a window of {window} rows needs {} of memory in all, and nine tenths of what is available now is {}; {}. \
         allow_overcommit(true) builds it anyway",
        readable(*.needed),
        readable(*.available),
        what_fits(*.largest_window)
    )]
    Memory {
        /// The window, in rows.
        window: usize,
        /// Bytes that the store needs: for the window, the ready frames and one more frame.
        needed: usize,
        /// Nine tenths of the bytes that are available now.
        available: usize,
        /// The largest window that fits, in rows. 0 if no window fits.
        largest_window: usize,
    },
    /// The writer's thread could not be started.
    #[error("the writer's thread could not be started: {reason}")]
    Thread {
        /// The operating system's reason.
        reason: String,
    },
    /// The store's writer panicked, or the recorder's thread has ended. You cannot use the store or the recorder any more.
    #[error("the store's writer panicked: {cause}")]
    Poisoned {
        /// The panic's message, or what has ended.
        cause: Arc<str>,
    },
}

/// Writes a number of bytes in the largest unit in which it is at least 1.
pub(crate) fn readable(bytes: usize) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|&(shift, _)| bytes >> shift > 0);
    unit.map_or_else(
        || format!("{bytes} bytes"),
        |(shift, unit)| format!("{:.2} {unit}", bytes as f64 / 2_f64.powi(shift)),
    )
}

fn what_fits(largest_window: usize) -> Cow<'static, str> {
    match largest_window {
        0 => "no window fits: use a smaller batch_size, fewer ready_frames, fewer features or a smaller dtype".into(),
        rows => format!("the largest window that fits is {rows} rows").into(),
    }
}
