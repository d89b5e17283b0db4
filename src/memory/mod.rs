//! The memory that holds rows, and the code that copies rows to it. All of the crate's `unsafe` code is here.
//!
//! This folder makes frames from a layout: aligned, initialised memory for minibatches. It copies the rows of batches to frames,
//! or converts them to the component's element type.

pub(crate) mod available;
pub(crate) mod convert;
pub(crate) mod copy;
pub(crate) mod finite;
pub(crate) mod frame;
pub(crate) mod narrow;
pub(crate) mod pages;
pub(crate) mod part;
pub(crate) mod pool;
pub(crate) mod widely;
