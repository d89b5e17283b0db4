// These definitions lead the README's links to these pages. Of two definitions of a link, the first one counts.
//! [docs/architecture.md]: _documentation::architecture
//! [docs/jupyter.md]: _documentation::jupyter
//! [docs/performance.md]: _documentation::performance
//! [docs/promises.md]: _documentation::promises
//! [docs/python.md]: _documentation::python
//! [docs/recording.md]: _documentation::recording
//! [docs/resume.md]: _documentation::resume
//! [awaited `extend`]: _documentation::awaited_extend
//! [concurrent capture]: _documentation::concurrent_capture
//! [a slow trainer and its backpressure]: _documentation::slow_trainer
//! [a store of your own]: _documentation::custom_store
//! [the whole program]: #try-it
//! [its own program]: _documentation::python
// These pages cannot link to a picture, but they can contain it. The picture comes last, and an empty one takes its old place.
//! [picture]: data:image/svg+xml,%3Csvg%20xmlns='http://www.w3.org/2000/svg'%20width='0'%20height='0'/%3E
#![doc = include_str!("../README.md")]
//!
//! # The pipeline
//!
#![doc = include_str!("../docs/pipeline.svg")]
//!
//! # Where to start
//!
//! - [`RingStore`] is the pipeline. [`TensorStore`] has a fixed size. Both implement [`ActivationStore`].
//! - You write a [`Batch`] and get a [`WriteHandle`]. You read [`Minibatches`].
//! - A [`Recorder`] writes rows to disk. A [`Recording`] reads them, and a [`Replay`] gives them to a ring store again.
//!
//! [The architecture](_documentation::architecture) and [the promises](_documentation::promises) have their own pages.

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench_support;
mod dealing;
mod disk;
mod memory;
mod recording;
mod ring_store;
mod rows;
mod store;
mod tensor_store;
mod waiting;

/// The crates whose types are in the API of this crate, in the versions that this crate uses.
pub use {half, ndarray};

pub use crate::{
    dealing::dealer::DEALING_VERSION,
    disk::error::DiskError,
    recording::{
        catch_up::{CatchUp, Lacks},
        error::RecordingError,
        recorder::Recorder,
        recorder_builder::RecorderBuilder,
        recorder_pass::RecorderPass,
        recording::{RecordedLane, Recording},
        replay::{Position, Replay, ReplayedRows, Replaying},
        reserve::{RecorderPermit, RecorderReserve},
        sealer::{Safe, SyncPolicy},
        tee::Tee,
        tee_pass::{TeePass, TeePermit, TeeReserve},
    },
    ring_store::{
        builder::{Merge, RingStoreBuilder, WhenFull},
        consumer::{Blocking, Minibatches, NextMinibatch, TryNextMinibatch},
        error::{LaneId, ReadError},
        flush::Flush,
        group::{ProducerError, ProducerGroup, ProducerHandle, ProducerScope, SpawnError},
        minibatch::{Minibatch, ViewError},
        monitor::Monitor,
        pass::Pass,
        plan::Plan,
        producer::Producer,
        reserve::{Permit, Reserve},
        ring_store::RingStore,
        snapshot::{
            asking::SnapshotHandle,
            error::{RefusedSnapshot, ResumeError, RowsMissing, SnapshotError},
            resume::ResumePoint,
            snapshot::{Form, ResumeAt, Snapshot},
            snapshots::Snapshots,
        },
        stats::{ComponentStats, Dropped, Stats},
    },
    rows::{
        batch::{Batch, Refused, RefusedPass},
        build_error::BuildError,
        closed::{Closed, ClosedBy},
        element::{DType, Element, UnknownDType},
        error::{ShapeError, WriteError},
        full::{NoRoom, StoreFullError},
        index::{Index, IndexError},
        layout::{Component, ComponentKey},
        names::{ComponentName, UnknownComponent},
        values::ValueCounts,
    },
    store::{ActivationStore, ActivationStoreExt, TestData},
    tensor_store::{builder::TensorStoreBuilder, epoch::Epoch, tensor_store::TensorStore},
    waiting::handle::{WriteHandle, WriteReply, Written},
};

/// Holds longer texts and examples. Nothing here is part of the API.
pub mod _documentation {
    /// [fork]: notes
    /// [performance.md]: performance
    /// [promises.md]: promises
    /// [reservoir]: notes
    /// [resume.md]: resume
    #[doc = include_str!("../docs/architecture.md")]
    pub mod architecture {}
    /// [fork]: notes
    /// [recording.md]: recording
    /// [resume.md]: resume
    #[doc = include_str!("../docs/promises.md")]
    pub mod promises {}
    // These pages cannot link to a picture, but they can contain it. The picture comes last, and an empty one takes its old place.
    /// [chart]: data:image/svg+xml,%3Csvg%20xmlns='http://www.w3.org/2000/svg'%20width='0'%20height='0'/%3E
    /// [conversion]: notes
    /// [copying]: notes
    /// [direct-io]: notes
    /// [overlap]: notes
    /// [prefetch]: notes
    /// [reservoir]: notes
    /// [sizes]: notes
    /// [stripes]: notes
    /// [writer-threads]: notes
    /// [python.md]: python
    #[doc = include_str!("../docs/performance.md")]
    ///
    /// ## The chart
    ///
    #[doc = include_str!("../docs/performance.svg")]
    pub mod performance {}
    /// [jupyter.md]: jupyter
    /// [recording.md]: recording
    /// [resume.md]: resume
    #[doc = include_str!("../docs/python.md")]
    pub mod python {}
    /// [memory]: promises
    /// [overlap]: python
    /// [resume.md]: resume
    /// [waits]: performance
    #[doc = include_str!("../docs/jupyter.md")]
    pub mod jupyter {}
    /// [promises.md]: promises
    /// [recording.md]: recording
    #[doc = include_str!("../docs/resume.md")]
    pub mod resume {}
    /// [performance.md]: performance
    #[doc = include_str!("../docs/recording.md")]
    pub mod recording {}
    #[doc = include_str!("../docs/notes/2026-11-conversion.md")]
    #[doc = include_str!("../docs/notes/2026-11-copying.md")]
    #[doc = include_str!("../docs/notes/2026-11-deref.md")]
    #[doc = include_str!("../docs/notes/2026-11-direct-io.md")]
    #[doc = include_str!("../docs/notes/2026-11-fork.md")]
    #[doc = include_str!("../docs/notes/2026-11-overlap.md")]
    #[doc = include_str!("../docs/notes/2026-11-prefetch.md")]
    #[doc = include_str!("../docs/notes/2026-11-reservoir.md")]
    #[doc = include_str!("../docs/notes/2026-11-sizes.md")]
    #[doc = include_str!("../docs/notes/2026-11-stripes.md")]
    #[doc = include_str!("../docs/notes/2026-11-writer-threads.md")]
    #[doc = include_str!("../docs/notes/2026-11-writer.md")]
    pub mod notes {}
    #[doc = include_str!("../CHANGELOG.md")]
    pub mod changelog {}
    /// ```no_run
    #[doc = include_str!("../examples/awaited_extend.rs")]
    /// ```
    pub mod awaited_extend {}
    /// ```no_run
    #[doc = include_str!("../examples/concurrent_capture.rs")]
    /// ```
    pub mod concurrent_capture {}
    /// ```no_run
    #[doc = include_str!("../examples/slow_trainer.rs")]
    /// ```
    pub mod slow_trainer {}
    /// ```no_run
    #[doc = include_str!("../examples/custom_store.rs")]
    /// ```
    pub mod custom_store {}
}
