//! Trains one sparse autoencoder per hooked layer of a real transformer while the transformer is being captured.
//!
//! Two threads run all-MiniLM-L6-v2 over English text. Hooks gather the residual stream at two layers, pass by pass, for a
//! [`RingStore`]. An asynchronous loop drains shuffled minibatches from it and trains on them. All of it happens at the
//! same time.

mod capture;
mod checkpoint;
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
use std::path::PathBuf;
use std::process;
use std::thread;
use std::time::Instant;

use activation_store::{Batch, Form, Merge, Producer, RingStore};
use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use ndarray::Array2;
use tokio::sync::oneshot;

use crate::capture::Hooked;
use crate::checkpoint::Checkpoints;
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
    /// Save a checkpoint of the SAEs, their optimiser and the store here, once for every window of rows
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Minibatches between two checkpoints [default: a window of rows]
    #[arg(long, value_name = "N", requires = "checkpoint")]
    checkpoint_every: Option<u64>,
    /// Save the rows in the ring, too, so that a resumed run captures none of them again
    #[arg(long, requires = "checkpoint")]
    full: bool,
    /// Go on from the newest checkpoint; with --reproducible, to the same SAEs to the last bit as a run that was never stopped
    #[arg(long, requires = "checkpoint")]
    resume: bool,
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
    for inputs in hooked.inputs(&dataset.held_out, rows) {
        hooked.forward(&inputs?, &mut |component, rows| {
            captured[component].extend(rows);
            Ok(())
        })?;
    }
    let component = |(layer, numbers): (&usize, Vec<f32>)| {
        Ok(Component::new(format!("layer.{layer}"), Array2::from_shape_vec((rows, width), numbers)?))
    };
    hooked.layers.iter().zip(captured).map(component).collect()
}

/// The main job: capture threads on one side of the store, the training loop on the other.
fn capture_and_train(args: &Args, hooked: &Hooked, dataset: &Dataset, components: &mut [Component]) -> Result<Run> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut builder = RingStore::builder()
        .batch_size(args.batch_size)
        .window(args.window)
        .seed(args.seed)
        .merge(if args.reproducible { Merge::RoundRobin } else { Merge::Arrival })
        .runtime(runtime.handle().clone());
    for component in components.iter() {
        builder = builder.component(&component.name, hooked.model.width());
    }
    let plan = Plan {
        latents: args.latents,
        k: args.k,
        rate: args.rate,
        steps: args.rows.div_ceil(args.batch_size),
        seed: args.seed,
    };
    let every = args.checkpoint_every.unwrap_or((args.window / args.batch_size) as u64).max(1);
    let form = if args.full { Form::Full } else { Form::Light };
    let checkpoints = args.checkpoint.clone().map(|dir| Checkpoints::new(dir, every, form)).transpose()?;
    let resumed = match &checkpoints {
        Some(checkpoints) if args.resume => checkpoints.load(components, &plan)?,
        _ => None,
    };
    let store = match &resumed {
        Some((k, snapshot)) => {
            println!("resumed behind minibatch {k} from {}", snapshot.display());
            builder.resume(snapshot)?
        }
        None => {
            if args.resume {
                println!("note: there is no checkpoint yet, so the run starts anew");
            }
            builder.build()?
        }
    };
    let resume_at = store.resume_at().to_vec();
    let monitor = store.monitor();
    let progress = Progress::new(args.rows, args.window);
    let start = Instant::now();
    let (stop, stopped) = oneshot::channel();
    let watcher = runtime.spawn(watch(monitor.clone(), start, progress.clone(), stopped));

    runtime.spawn(stop_at_ctrl_c(store.clone()));

    let shares = &dataset.shares;
    let cores = thread::available_parallelism().map_or(1, usize::from).div_ceil(shares.len());
    store.scope(
        |producers| {
            for (index, share) in shares.iter().enumerate() {
                // The rows that do not divide evenly go to the first threads.
                let rows = args.rows / shares.len() + usize::from(index < args.rows % shares.len());
                let name = format!("capture {index}");
                let at = resume_at.iter().find(|at| at.lane.name.as_deref() == Some(&*name));
                let passes = match at {
                    Some(at) => at.passes as usize,
                    // All of its passes are safe.
                    None if resumed.is_some() => usize::MAX,
                    None => 0,
                };
                producers.spawn(name, move |lane| capture(hooked, share, rows, passes, cores, &lane))?;
            }
            Ok(())
        },
        |minibatches| runtime.block_on(train(minibatches, components, plan, start, &progress, checkpoints)),
    )?;
    let elapsed = start.elapsed();
    drop(stop);
    let fill = runtime.block_on(watcher)?;
    progress.finish();
    Ok(Run { elapsed, fill, window: args.window, latents: args.latents, stats: monitor.stats() })
}

/// Ctrl-C ends the capture after its pass; what was captured is trained on, and the summary is printed. A second one ends
/// the program.
async fn stop_at_ctrl_c(store: RingStore) {
    if tokio::signal::ctrl_c().await.is_ok() {
        eprintln!("stopping: what has been captured is still trained on (Ctrl-C again ends at once)");
        store.close();
    }
    if tokio::signal::ctrl_c().await.is_ok() {
        process::exit(130);
    }
}

/// One capture thread: writes each forward pass but the first `skip` to its lane as a whole, and waits while the store is full.
fn capture(hooked: &Hooked, share: &[Sequence], rows: usize, skip: usize, cores: usize, lane: &Producer) -> Result<()> {
    // Candle computes in the pool it is called from: each thread has one of its own.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(cores).build()?;
    let width = hooked.model.width();
    pool.install(|| {
        for inputs in hooked.inputs(share, rows).skip(skip) {
            let mut pass = lane.begin_pass();
            hooked.forward(&inputs?, &mut |component, rows| Ok(pass.put(component, Batch::from_vec(rows, width)?)?))?;
            pass.commit_blocking()?;
        }
        Ok(())
    })
}
