#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`RingStore`] is the pipeline, [`TensorStore`] the store of fixed size, [`ActivationStore`] what they have in common.
//! [`Batch`] is what goes in, [`WriteHandle`] what comes back, [`Minibatches`] what is drained.
//! [The architecture](_documentation::architecture) and [the promises](_documentation::promises) are pages of their own.

mod batch;
#[doc(hidden)]
pub mod bench_support;
mod config;
mod consume;
mod copy;
mod deal;
mod element;
mod error;
mod exchange;
mod fate;
mod frame;
mod handle;
mod host;
mod index;
mod intake;
mod lanes;
mod layout;
mod minibatch;
mod pool;
mod producer;
mod queue;
mod ring;
mod ring_store;
mod rows;
mod spread;
mod stats;
mod store;
mod sync;
mod tensor_store;
mod writer;

pub use crate::{
    batch::{Batch, Refused},
    config::{Merge, RingStoreBuilder, WhenFull},
    consume::{Blocking, Minibatches},
    element::{DType, Element, UnknownDType},
    error::{
        BuildError, ClosedBy, ComponentName, IndexError, ReadError, ShapeError, StoreFullError, UnknownComponent,
        ViewError, WriteError,
    },
    handle::{Flush, WriteHandle, Written},
    index::Index,
    layout::{Component, ComponentKey},
    minibatch::Minibatch,
    producer::Producer,
    ring_store::RingStore,
    stats::{ComponentStats, Stats},
    store::{ActivationStore, ActivationStoreExt, TestData},
    tensor_store::{Epoch, TensorStore, TensorStoreBuilder},
};

/// Longer texts, for reading; nothing here is code.
pub mod _documentation {
    #[doc = include_str!("../docs/architecture.md")]
    pub mod architecture {}
    #[doc = include_str!("../docs/promises.md")]
    pub mod promises {}
    #[doc = include_str!("../docs/performance.md")]
    pub mod performance {}
    #[doc = include_str!("../CHANGELOG.md")]
    pub mod changelog {}
}
