//! What a row is: the values a model produced for one token at one component.
//!
//! Batches of rows come in from the caller, by value. They are checked against the layout of the store's components. What
//! goes out is a [`Batch`](batch::Batch) whose width and element type fit its component, and the layout of a frame's memory.

pub(crate) mod batch;
pub(crate) mod element;
pub(crate) mod index;
pub(crate) mod layout;
