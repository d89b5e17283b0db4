//! Trains one sparse autoencoder per hooked layer of a real transformer while the transformer is being captured.
//!
//! Two threads run all-MiniLM-L6-v2 over English text. Hooks hand the residual stream at two layers to a [`RingStore`];
//! an asynchronous loop drains shuffled minibatches from it and trains on them. All of it happens at the same time.

mod capture;
mod dataset;
mod dependencies;
mod fetch;
mod model;
mod pca;
mod plot;
mod progress;
mod sae;
mod summary;
mod text;
mod tokens;
mod trainer;
mod training;

use std::fs;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use activation_store::{Batch, Merge, Producer, RingStore};
use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use ndarray::Array2;
use tokio::sync::oneshot;

use crate::capture::Hooked;
use crate::dataset::Dataset;
use crate::model::Bert;
use crate::progress::Progress;
use crate::summary::Run;
use crate::text::Corpus;
use crate::tokens::{Sequence, Tokenizer};
use crate::training::{Component, Plan, train, watch};

/// Longest sequence of tokens that goes through the model, special ones included.
const LENGTH: usize = 128;

/// Train one sparse autoencoder per hooked layer of all-MiniLM-L6-v2 while it is being captured.
#[derive(Parser)]
#[command(version, args_override_self = true)]
struct Args {
    /// Rows (tokens) to capture; a text with fewer tokens is read again from its start
    #[arg(long, default_value_t = 120_000)]
    rows: usize,
    /// Layers to hook: 0 is the embedding, 1 the first encoder layer
    #[arg(long, value_delimiter = ',', default_value = "2,4")]
    layers: Vec<usize>,
    /// Directory with config.json, model.safetensors and tokenizer.json [default: downloaded once with pip]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Files to read, or directories with .txt and .md files [default: the docs of this program's dependencies]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    text: Vec<PathBuf>,
    /// Where the SAEs and the picture go
    #[arg(long, value_name = "DIR", default_value = "target/train_sae")]
    out: PathBuf,
    /// Threads that capture, each with its own part of the text
    #[arg(long, default_value_t = 2)]
    capture_threads: usize,
    /// Rows in a minibatch
    #[arg(long, default_value_t = 256)]
    batch_size: usize,
    /// Rows in the ring, over which minibatches are mixed
    #[arg(long, default_value_t = 16_384)]
    window: usize,
    /// Latents of an SAE
    #[arg(long, default_value_t = 1536)]
    latents: usize,
    /// Latents active per row
    #[arg(short, default_value_t = 32)]
    k: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 0.002)]
    rate: f32,
    /// Take the threads' rows in turn, not as they come, so that the same arguments give the same SAEs to the last bit
    #[arg(long)]
    reproducible: bool,
    /// Seed of all that is random
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Args {
    /// Refuses what neither clap nor the store does.
    fn check(&self) -> Result<()> {
        ensure!(self.batch_size > 1, "--batch-size {}: one row has no variance to start from", self.batch_size);
        ensure!(self.rows >= self.batch_size, "--rows {}: less than one minibatch of {}", self.rows, self.batch_size);
        ensure!(self.capture_threads > 0, "--capture-threads 0: at least one thread must capture");
        ensure!((1..=self.latents).contains(&self.k), "-k {}: it must be 1 to the {} latents", self.k, self.latents);
        ensure!(self.rate > 0.0 && self.rate.is_finite(), "--rate {}: it must be a positive number", self.rate);
        for (index, layer) in self.layers.iter().enumerate() {
            ensure!(!self.layers[..index].contains(layer), "--layers: {layer} is there twice");
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    args.check()?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;

    let dir = fetch::model_dir(args.model.as_deref())?;
    let hooked = Hooked {
        model: Bert::load(&dir, args.layers.iter().copied().max())?,
        tokenizer: Tokenizer::load(&dir)?,
        layers: args.layers.clone(),
    };
    let corpus = if args.text.is_empty() { Corpus::from_dependencies()? } else { Corpus::from_paths(&args.text)? };
    let length = LENGTH.min(hooked.model.max_positions()) - 2;
    let dataset = Dataset::new(&corpus, &hooked.tokenizer, length, args.rows, args.capture_threads, args.seed)?;
    let (tokens, rows) = (dataset.training_rows(), args.rows);
    println!("text: {:.1} MB from {}", corpus.bytes() as f64 / 1e6, corpus.origin);
    if tokens < rows {
        println!("note: it has {tokens} tokens to train on, so it is read {:.1} times", rows as f64 / tokens as f64);
    }
    let mut components = held_out(&hooked, &dataset)?;

    let run = capture_and_train(&args, &hooked, &dataset, &mut components)?;
    run.report(&components, &args.out)
}

/// The components, with the rows they will be judged on.
fn held_out(hooked: &Hooked, dataset: &Dataset) -> Result<Vec<Component>> {
    let (rows, width) = (dataset.held_out_rows(), hooked.model.width());
    let mut captured = vec![Vec::with_capacity(rows * width); hooked.layers.len()];
    hooked.capture(&dataset.held_out, rows, &mut |component, rows| {
        captured[component].extend(rows);
        Ok(())
    })?;
    let component = |(layer, numbers): (&usize, Vec<f32>)| {
        Ok(Component::new(format!("layer.{layer}"), Array2::from_shape_vec((rows, width), numbers)?))
    };
    hooked.layers.iter().zip(captured).map(component).collect()
}

/// The main job: capture threads on one side of the store, the training loop on the other.
fn capture_and_train(args: &Args, hooked: &Hooked, dataset: &Dataset, components: &mut [Component]) -> Result<Run> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build()?;
    let mut builder = RingStore::builder()
        .batch_size(args.batch_size)
        .window(args.window)
        .seed(args.seed)
        .merge(if args.reproducible { Merge::RoundRobin } else { Merge::Arrival })
        .runtime(runtime.handle().clone());
    for component in components.iter() {
        builder = builder.component(&component.name, hooked.model.width());
    }
    let store = builder.build()?;
    let plan = Plan {
        latents: args.latents,
        k: args.k,
        rate: args.rate,
        steps: args.rows.div_ceil(args.batch_size),
        seed: args.seed,
    };
    let progress = Progress::new(args.rows, args.window);
    let start = Instant::now();
    let (stop, stopped) = oneshot::channel();
    let watcher = runtime.spawn(watch(store.clone(), start, progress.clone(), stopped));

    thread::scope(|scope| {
        let minibatches = store.minibatches();
        let capture = scope.spawn(|| capture_all(hooked, &dataset.shares, args.rows, &store));
        let trained = runtime.block_on(train(minibatches, components, plan, start, &progress));
        let captured = capture.join().unwrap_or_else(|panic| resume_unwind(panic));
        // A training that fails closes the store, and that the capture fails then too is of no interest. A capture that
        // fails just ends the training.
        trained.and(captured)
    })?;
    let elapsed = start.elapsed();
    drop(stop);
    let fill = runtime.block_on(watcher)?;
    progress.finish();
    Ok(Run { elapsed, fill, window: args.window, latents: args.latents, stats: store.stats() })
}

/// Runs one thread per share, and closes the store when all have ended.
fn capture_all(hooked: &Hooked, shares: &[Vec<Sequence>], rows: usize, store: &RingStore) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from).div_ceil(shares.len());
    // All lanes are opened before the first row comes: their order is the order in which they take turns.
    let lanes = shares.iter().map(|_| store.producer()).collect::<Result<Vec<_>, _>>()?;
    let result = thread::scope(|scope| {
        let captures: Vec<_> = lanes
            .into_iter()
            .zip(shares)
            .enumerate()
            .map(|(index, (lane, share))| {
                // The rows that do not divide evenly go to the first threads.
                let rows = rows / shares.len() + usize::from(index < rows % shares.len());
                scope.spawn(move || {
                    // Candle computes in the pool it is called from: each thread has one of its own.
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
                    pool.install(|| capture_one(hooked, share, rows, &lane))
                })
            })
            .collect();
        captures.into_iter().try_for_each(|capture| capture.join().map_err(|_| anyhow!("a capture thread panicked"))?)
    });
    match &result {
        Ok(()) => store.close(),
        // What is in the ring is of no use any more, and the training loop is not to wait for the rest.
        Err(_) => store.abort(),
    }
    result
}

/// One capture thread: the hooks extend its lane, and wait while the store is full.
fn capture_one(hooked: &Hooked, share: &[Sequence], rows: usize, lane: &Producer) -> Result<()> {
    let width = hooked.model.width();
    hooked.capture(share, rows, &mut |component, rows| {
        Ok(lane.extend_blocking(Batch::from_vec(rows, width)?, component)?)
    })
}
