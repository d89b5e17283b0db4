//! Rows: a row is the values that a model produced for one token at one component.
//!
//! The caller hands over batches of rows by value. This folder checks them against the layout of the store's components. The
//! result is a [`Batch`](batch::Batch) whose width and element type fit its component. This folder also has the layout of a
//! frame's memory.

pub(crate) mod batch;
pub(crate) mod build_error;
pub(crate) mod closed;
pub(crate) mod element;
pub(crate) mod error;
pub(crate) mod full;
pub(crate) mod index;
pub(crate) mod layout;
pub(crate) mod names;
pub(crate) mod pass;
pub(crate) mod values;
