//! An asynchronous store for transformer activations.

mod batch;
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
mod lanes;
mod layout;
mod minibatch;
mod pool;
mod queue;
mod ring;
mod ring_store;
mod rows;
mod stats;
mod store;
mod sync;
mod tensor_store;
mod writer;

pub use crate::{
    batch::Batch,
    config::{Merge, RingStoreBuilder, WhenFull},
    consume::{Blocking, Minibatches},
    element::{DType, Element},
    error::{
        BuildError, ClosedBy, ComponentName, IndexError, ReadError, Refused, ShapeError, StoreFullError,
        UnknownComponent, ViewError, WriteError,
    },
    handle::{Flush, WriteHandle, Written},
    index::Index,
    layout::{Component, ComponentKey},
    minibatch::Minibatch,
    ring_store::{Producer, RingStore},
    stats::{ComponentStats, Stats},
    store::{ActivationStore, ActivationStoreExt, TestData},
    tensor_store::{Epoch, TensorStore, TensorStoreBuilder},
};
