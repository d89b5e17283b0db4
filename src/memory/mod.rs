//! The memory that rows lie in, and the copying of rows to it. All of the crate's `unsafe` code is here.
//!
//! A layout comes in and frames go out: aligned, initialised memory for a minibatch. Batches come in and are copied, or
//! converted to the component's element type, row by row.

pub(crate) mod available;
pub(crate) mod convert;
pub(crate) mod copy;
pub(crate) mod frame;
pub(crate) mod narrow;
pub(crate) mod pages;
pub(crate) mod part;
pub(crate) mod pool;
