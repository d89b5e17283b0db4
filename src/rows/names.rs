//! Components, as messages name them.

use std::fmt;
use std::sync::Arc;

/// The number and name of a component, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentName {
    /// The number of the component, from 0.
    pub index: usize,
    /// The name of the component.
    pub name: Arc<str>,
}

impl fmt::Display for ComponentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.index, self.name)
    }
}

/// Returned when a store has no such component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no component {asked}; this store has {known}")]
pub struct UnknownComponent {
    /// The number or name that was asked for.
    pub asked: String,
    /// The components that the store has.
    pub known: String,
}
