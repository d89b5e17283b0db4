//! The source of the rows: the model, or a recording of it.

use std::path::{Path, PathBuf};
use std::thread;

use activation_store::{
    Batch, CatchUp, Minibatches, Producer, Recorder, RecorderBuilder, Recording, Replay, ResumePoint, RingStore,
    RingStoreBuilder, Tee,
};
use anyhow::{Context as _, Result};
use ndarray::Array2;

use crate::capture::Hooked;
use crate::dataset::Dataset;

/// The folders of a recording: the rows to train on, and the rows that judge the SAEs.
const TRAINING: &str = "training";
const HELD_OUT: &str = "held-out";

/// A hooked layer, and the rows that judge its SAEs.
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) held_out: Array2<f32>,
}

/// The source of the rows.
pub(crate) enum Source {
    Model(Box<Capture>),
    Recording { replay: Box<Replay>, rows: usize },
}

/// Threads that run the model over a text.
pub(crate) struct Capture {
    hooked: Hooked,
    dataset: Dataset,
    rows: usize,
    record: Option<RecordTo>,
}

/// A folder into which the captured rows are recorded.
struct RecordTo {
    dir: PathBuf,
    shard_rows: usize,
    metadata: Vec<(&'static str, String)>,
}

impl Capture {
    pub(crate) fn new(hooked: Hooked, dataset: Dataset, rows: usize) -> Self {
        Self { hooked, dataset, rows, record: None }
    }

    /// Records what is captured, in shards of `shard_rows` rows, with a word on where it comes from. Goes on behind what was recorded
    /// before, if any.
    pub(crate) fn record(mut self, dir: &Path, shard_rows: usize, model: &Path, text: &str) -> Self {
        let metadata = vec![
            ("model", model.display().to_string()),
            ("hooks", self.names().join(",")),
            ("tokenizer", model.join("tokenizer.json").display().to_string()),
            ("dataset", text.to_owned()),
            ("context_length", self.dataset.length.to_string()),
        ];
        self.record = Some(RecordTo { dir: dir.to_owned(), shard_rows, metadata });
        self
    }

    fn names(&self) -> Vec<String> {
        self.hooked.layers.iter().map(|layer| format!("layer.{layer}")).collect()
    }

    /// Captures the rows that judge the SAEs. Records them, too, if the capture is recorded.
    pub(crate) fn held_out(&self) -> Result<Vec<Layer>> {
        let (rows, width) = (self.dataset.held_out_rows(), self.hooked.model.width());
        let mut captured = vec![Vec::with_capacity(rows * width); self.hooked.layers.len()];
        for inputs in self.hooked.inputs(&self.dataset.held_out, rows) {
            self.hooked.forward(&inputs?, &mut |component, rows| {
                captured[component].extend(rows);
                Ok(())
            })?;
        }
        let layer = |(name, numbers)| Ok(Layer { name, held_out: Array2::from_shape_vec((rows, width), numbers)? });
        let layers: Vec<Layer> = self.names().into_iter().zip(captured).map(layer).collect::<Result<_>>()?;
        if let Some(record) = &self.record {
            let recorder = record.recorder(&self.names(), width).resume(record.dir.join(HELD_OUT))?;
            if recorder.resumed().passes == 0 {
                recorder.extend_pass(layers.iter().map(|layer| &layer.held_out).cloned().enumerate())?.wait()?;
            }
            recorder.finish()?;
        }
        Ok(layers)
    }

    /// Runs the capture threads while `train` takes minibatches.
    fn run(&self, store: &RingStore, train: impl FnOnce(Minibatches) -> Result<()>) -> Result<()> {
        let shares = &self.dataset.shares;
        let cores = thread::available_parallelism().map_or(1, usize::from).div_ceil(shares.len());
        store.scope(
            |producers| {
                for index in 0..shares.len() {
                    let name = format!("capture {index}");
                    let point = store.resume_point(Some(&name));
                    producers.spawn(name, move |lane| self.share(index, point, cores, lane))?;
                }
                Ok(())
            },
            train,
        )
    }

    /// One capture thread: writes each forward pass as a whole, and waits while the store is full. `point` says where its lane goes on.
    fn share(&self, index: usize, point: ResumePoint<'_>, cores: usize, lane: Producer) -> Result<()> {
        let (hooked, shares) = (&self.hooked, &self.dataset.shares);
        // If the rows do not divide evenly, the first threads get one row more.
        let rows = self.rows / shares.len() + usize::from(index < self.rows % shares.len());
        let width = hooked.model.width();
        let sink = match &self.record {
            None => {
                let passes = match point {
                    ResumePoint::New => 0,
                    ResumePoint::GoesOn(at) => at.passes,
                    // The lane has ended: all of its passes are safe.
                    ResumePoint::Ended => u64::MAX,
                };
                Sink::Ring { lane, passes }
            }
            Some(record) => {
                let recorder = record.recorder(&self.names(), width).lane(format!("capture-{index}"));
                let recorder = recorder.resume(record.dir.join(TRAINING))?;
                let catch_up = CatchUp::new(point, recorder.resumed());
                Sink::Both { tee: Box::new(Tee::new(lane, recorder)?), catch_up }
            }
        };
        // Candle computes in the pool from which it is called, so each thread has a pool of its own.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(cores).build()?;
        let captured = pool.install(|| {
            let first = usize::try_from(sink.first_pass()).unwrap_or(usize::MAX);
            for (number, inputs) in (0..).zip(hooked.inputs(&shares[index], rows)).skip(first) {
                let mut pass = Vec::with_capacity(hooked.layers.len());
                hooked.forward(&inputs?, &mut |component, rows| {
                    pass.push((component, Batch::from_vec(rows, width)?));
                    Ok(())
                })?;
                sink.write(number, pass)?;
            }
            Ok(())
        });
        sink.finish()?;
        captured
    }
}

impl RecordTo {
    fn recorder(&self, names: &[String], width: usize) -> RecorderBuilder {
        let builder = names.iter().fold(Recorder::builder(), |builder, name| builder.component(name, width));
        let metadata = self.metadata.iter();
        metadata.fold(builder.shard_rows(self.shard_rows), |builder, (key, value)| builder.metadata(*key, value))
    }
}

/// Where a capture thread's passes go, and what is there from an earlier run.
enum Sink {
    Ring { lane: Producer, passes: u64 },
    Both { tee: Box<Tee>, catch_up: CatchUp },
}

impl Sink {
    /// The first pass that needs a forward pass.
    fn first_pass(&self) -> u64 {
        match self {
            Self::Ring { passes, .. } => *passes,
            Self::Both { catch_up, .. } => catch_up.first_pass(),
        }
    }

    /// Writes a pass, by its number, to what lacks it. Blocks while the store is full or the disk is behind.
    fn write(&self, number: u64, pass: Vec<(usize, Batch)>) -> Result<()> {
        match self {
            Self::Ring { lane, .. } => lane.extend_pass_blocking(pass)?,
            Self::Both { tee, catch_up } => {
                tee.catch_up(catch_up.lacks(number), pass)?.wait()?;
            }
        }
        Ok(())
    }

    /// Finishes the recording, if there is one. If the capture ends early, the recording keeps the passes so far.
    fn finish(self) -> Result<()> {
        if let Self::Both { tee, .. } = self {
            tee.finish()?;
        }
        Ok(())
    }
}

impl Source {
    /// Opens a recording. Also returns the rows that judge the SAEs.
    pub(crate) fn recording(
        dir: &Path,
        layers: Option<&[usize]>,
        epochs: u64,
        seed: u64,
    ) -> Result<(Self, Vec<Layer>)> {
        let open = |part| {
            let dir = dir.join(part);
            Recording::open(&dir).with_context(|| format!("--replay: {} is no recording", dir.display()))
        };
        let (training, held_out) = (open(TRAINING)?, open(HELD_OUT)?);
        let names: Vec<String> = match layers {
            Some(layers) => layers.iter().map(|layer| format!("layer.{layer}")).collect(),
            None => training.components().iter().map(|component| component.name.to_string()).collect(),
        };
        let rows: Vec<u64> = (0..held_out.rows()).collect();
        let layer =
            |name: &String| Ok(Layer { name: name.clone(), held_out: held_out.get(name.as_str(), &rows)?.to_f32() });
        let layers = names.iter().map(layer).collect::<Result<_>>()?;
        let replay = training.replay().components(names.iter().map(String::as_str))?.seed(seed).epochs(epochs);
        let replay = Box::new(replay);
        let rows = usize::try_from(training.rows().saturating_mul(epochs))?;
        Ok((Self::Recording { replay, rows }, layers))
    }

    /// Builds the store between the source and the training, or resumes it from a snapshot.
    pub(crate) fn store(
        &self,
        builder: RingStoreBuilder,
        layers: &[Layer],
        snapshot: Option<&Path>,
    ) -> Result<RingStore> {
        match (self, snapshot) {
            (Self::Recording { replay, .. }, None) => Ok(Replay::clone(replay).into_ring(builder)?),
            (Self::Recording { replay, .. }, Some(snapshot)) => Ok(Replay::clone(replay).resume(builder, snapshot)?),
            (Self::Model(_), snapshot) => {
                let with =
                    |builder: RingStoreBuilder, layer: &Layer| builder.component(&layer.name, layer.held_out.ncols());
                let builder = layers.iter().fold(builder, with);
                Ok(match snapshot {
                    None => builder.build()?,
                    Some(snapshot) => builder.resume(snapshot)?,
                })
            }
        }
    }

    /// Returns how many rows there will be.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Model(capture) => capture.rows,
            Self::Recording { rows, .. } => *rows,
        }
    }

    /// Fills `store` while `train` takes minibatches.
    pub(crate) fn run(&self, store: &RingStore, train: impl FnOnce(Minibatches) -> Result<()>) -> Result<()> {
        match self {
            Self::Model(capture) => capture.run(store, train),
            // A thread fills this store already.
            Self::Recording { .. } => train(store.minibatches()),
        }
    }
}
