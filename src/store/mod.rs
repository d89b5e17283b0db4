//! The public stores.
//!
//! The [`ActivationStore`](activation_store::ActivationStore) trait says what every store can do. [`RingStore`](ring_store::RingStore)
//! is the pipeline. [`TensorStore`](tensor_store::TensorStore) holds a fixed number of rows.

pub(crate) mod activation_store;
pub(crate) mod epoch;
pub(crate) mod resume;
pub(crate) mod ring_store;
pub(crate) mod tensor;
pub(crate) mod tensor_store;
pub(crate) mod tensor_writer;
