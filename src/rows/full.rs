//! A store has no room for more rows.

use std::borrow::Cow;

use crate::rows::names::ComponentName;

/// Returned when a store has no room for more rows.
///
/// You can replace the message, as in the original library.
///
/// ```
/// use activation_store::StoreFullError;
///
/// assert_eq!(StoreFullError::default().to_string(), "Activation store is full");
/// assert_eq!(StoreFullError::new("no room left").to_string(), "no room left");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct StoreFullError {
    /// The message.
    pub message: Cow<'static, str>,
    /// What the store had no room for, if the store says so.
    pub no_room: Option<NoRoom>,
}

/// What a store had no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoRoom {
    /// The component that had no room.
    pub component: ComponentName,
    /// The rows of the batch.
    pub rows: usize,
    /// The rows that the store, or its queue, holds already.
    pub held: usize,
    /// The rows that the store, or its queue, may hold.
    pub bound: usize,
}

impl StoreFullError {
    /// Creates an error with your message.
    #[must_use]
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        StoreFullError { message: message.into(), no_room: None }
    }

    pub(crate) fn queue(no_room: NoRoom) -> Self {
        let NoRoom { component, rows, held, bound } = &no_room;
        let message = format!(
            "Activation store is full: {rows} rows do not fit the queue of component {component}, which holds {held} of {bound}; \
             wait for the consumers, or raise queue_rows"
        );
        StoreFullError { message: message.into(), no_room: Some(no_room) }
    }

    pub(crate) fn permit(no_room: NoRoom, reserved: usize) -> Self {
        let NoRoom { component, rows, bound, .. } = &no_room;
        let message = format!(
            "{rows} rows of component {component} do not fit the permit, which has {bound} rows left of {reserved}; hand over at most \
             that many, or reserve room for the others"
        );
        StoreFullError { message: message.into(), no_room: Some(no_room) }
    }

    pub(crate) fn store(no_room: NoRoom) -> Self {
        let NoRoom { component, rows, held, bound } = &no_room;
        let message = format!(
            "Activation store is full: component {component} holds {held} of {bound} rows, so {rows} more do not fit"
        );
        StoreFullError { message: message.into(), no_room: Some(no_room) }
    }
}

impl Default for StoreFullError {
    fn default() -> Self {
        StoreFullError::new("Activation store is full")
    }
}
