//! The pipeline, with its threads and waits: it brings rows from a producer, through the queue and the writer, to a consumer.
//!
//! Batches come in from any thread and go through one queue. One writer takes them out of the queue, deals their rows to the ring,
//! and makes full frames ready. Consumers take the rows of ready frames as minibatches.

pub(crate) mod admission;
pub(crate) mod afterwards;
pub(crate) mod config;
pub(crate) mod consumer;
pub(crate) mod flush;
pub(crate) mod group;
pub(crate) mod handle;
pub(crate) mod lane;
pub(crate) mod ledger;
pub(crate) mod minibatch;
pub(crate) mod monitor;
pub(crate) mod pass;
pub(crate) mod plan;
pub(crate) mod producer;
pub(crate) mod queue;
pub(crate) mod ready;
pub(crate) mod reserve;
pub(crate) mod restart;
pub(crate) mod saving;
pub(crate) mod snapshotting;
pub(crate) mod state;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod wait;
pub(crate) mod waits;
pub(crate) mod worker;
pub(crate) mod writer;
