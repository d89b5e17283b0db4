//! Says which passes a ring and a recording lack after a crash, so that each gets every pass once.

use crate::recording::sealer::Safe;
use crate::ring_store::snapshot::resume::ResumePoint;

/// Where a ring and a recording go on after a crash.
///
/// A resumed ring needs the passes from its snapshot on, and a resumed recording needs the passes behind its last safe one. These are two
/// numbers. Run the capture again from [`first_pass`](Self::first_pass), in the same order as before, and give each pass to
/// [`Tee::catch_up`](crate::Tee::catch_up) with what [`lacks`](Self::lacks) says of it. Once both have caught up, both lack every pass, so the same loop captures
/// the rest.
///
/// ```
/// use activation_store::{CatchUp, Recorder, RingStore, Snapshots, Tee};
/// use ndarray::Array2;
///
/// # let dir = std::env::temp_dir().join(format!("catch-up-doc-{}", std::process::id()));
/// # fn run(pass: u64) -> Array2<f32> { Array2::from_elem((5, 4), pass as f32) }
/// let (recording, snapshots) = (dir.join("recording"), dir.join("snapshots"));
/// let recorder = Recorder::builder().component("mlp", 4).resume(&recording)?;
/// let builder = RingStore::builder().component("mlp", 4).batch_size(10).window(40).seed(3);
/// let resumes = !Snapshots::new(&snapshots).list()?.is_empty();
/// let store = if resumes { builder.resume(&snapshots)? } else { builder.build()? };
///
/// let catch_up = CatchUp::new(store.resume_point(Some("capture")), recorder.resumed());
/// let capture = store.spawn_producer("capture", move |lane| {
///     let tee = Tee::new(lane, recorder)?;
///     for pass in catch_up.first_pass()..20 {
///         tee.catch_up(catch_up.lacks(pass), [("mlp", run(pass))])?.wait()?;
///     }
///     tee.finish()?;
///     Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// })?;
/// for minibatch in store.minibatches().blocking() {
///     minibatch?; // train on it, and take a snapshot now and then
/// }
/// # drop(capture);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// The first pass that the ring lacks. `None` if its lane has ended, so that it lacks none.
    ring: Option<u64>,
    /// The first pass that the recording lacks.
    recording: u64,
}

/// Says whether a ring and a recording lack a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacks {
    /// Whether the ring lacks the pass.
    pub ring: bool,
    /// Whether the recording lacks the pass.
    pub recording: bool,
}

impl CatchUp {
    /// Compares where the lane of a ring goes on ([`RingStore::resume_point`](crate::RingStore::resume_point)) with what is recorded
    /// ([`Recorder::resumed`](crate::Recorder::resumed)).
    ///
    /// If the snapshot was taken after the lane had ended, the ring lacks nothing. If the whole store had ended, it opens no lane. Then give
    /// the passes to the recorder alone.
    #[must_use]
    pub fn new(ring: ResumePoint<'_>, recorded: Safe) -> Self {
        let ring = match ring {
            ResumePoint::New => Some(0),
            ResumePoint::GoesOn(at) => Some(at.passes),
            ResumePoint::Ended => None,
        };
        CatchUp { ring, recording: recorded.passes }
    }

    /// The number of the first pass that the ring or the recording lacks. Passes are numbered from 0.
    #[must_use]
    pub fn first_pass(&self) -> u64 {
        self.ring.map_or(self.recording, |ring| ring.min(self.recording))
    }

    /// Says whether the ring and the recording lack a pass.
    #[must_use]
    pub fn lacks(&self, pass: u64) -> Lacks {
        Lacks { ring: self.ring.is_some_and(|first| first <= pass), recording: self.recording <= pass }
    }
}
