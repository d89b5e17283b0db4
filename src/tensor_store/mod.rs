//! The store of fixed size: rows in memory, served in shuffled epochs.
//!
//! Batches come in from any thread, and a background task writes them into the rows. An [`epoch::Epoch`] gives them out as
//! minibatches.

pub(crate) mod builder;
pub(crate) mod epoch;
pub(crate) mod rows;
#[expect(clippy::module_inception, reason = "the folder is named after its main type")]
pub(crate) mod tensor_store;
pub(crate) mod writer;
