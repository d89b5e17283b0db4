//! The ring store: it brings rows from producers, through a queue and a writer, to consumers.
//!
//! Batches come in from any thread and go through one queue. One writer takes them out of the queue, deals their rows to the open
//! frames, and makes full frames ready. Consumers take the rows of ready frames as minibatches.

pub(crate) mod afterwards;
pub(crate) mod books;
pub(crate) mod builder;
pub(crate) mod consumer;
pub(crate) mod core;
pub(crate) mod entrance;
pub(crate) mod error;
pub(crate) mod flush;
pub(crate) mod group;
pub(crate) mod lane_book;
pub(crate) mod lanes;
pub(crate) mod ledger;
pub(crate) mod minibatch;
pub(crate) mod monitor;
mod own_lane;
pub(crate) mod pass;
pub(crate) mod plan;
pub(crate) mod producer;
pub(crate) mod queue;
pub(crate) mod ready;
pub(crate) mod reserve;
#[expect(clippy::module_inception, reason = "the folder is named after its main type")]
pub(crate) mod ring_store;
pub(crate) mod room;
pub(crate) mod snapshot;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod waits;
pub(crate) mod writer;
