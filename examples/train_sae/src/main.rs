//! Trains sparse autoencoders on the hooked layers of a real transformer while the transformer is being captured.
//!
//! Two threads run all-MiniLM-L6-v2 over English text. Hooks gather the residual stream at two layers, pass by pass, for a
//! [`RingStore`]. At the same time, an asynchronous loop takes shuffled minibatches from the store and trains on them. The program can
//! also record the rows that it captures, and can train on a recording in place of the model.

mod capture;
mod checkpoint;
mod component;
mod dataset;
mod dependencies;
mod fetch;
mod model;
mod pca;
mod plot;
mod progress;
mod sae;
mod source;
mod summary;
mod text;
mod tokens;
mod trainer;
mod training;

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Instant;

use activation_store::{Form, Merge, RingStore};
use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tokio::sync::oneshot;

use crate::capture::Hooked;
use crate::checkpoint::Checkpoints;
use crate::component::{Component, Plan};
use crate::dataset::Dataset;
use crate::model::Bert;
use crate::progress::Progress;
use crate::source::{Capture, Layer, Source};
use crate::summary::Run;
use crate::text::Corpus;
use crate::tokens::Tokenizer;
use crate::training::{train, watch};

/// The most tokens of a sequence that goes through the model, with the special ones.
const LENGTH: usize = 128;

/// Train sparse autoencoders on hooked layers of all-MiniLM-L6-v2 while it is being captured.
#[derive(Parser)]
#[command(version, args_override_self = true)]
struct Args {
    /// Rows (tokens) to capture; a text with fewer tokens is read again from its start
    #[arg(long, default_value_t = 120_000)]
    rows: usize,
    /// Layers to hook: 0 is the embedding, 1 the first encoder layer [default: 2,4, or all that were recorded]
    #[arg(long, value_delimiter = ',')]
    layers: Option<Vec<usize>>,
    /// Directory with config.json, model.safetensors and tokenizer.json [default: downloaded once with pip]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Files to read, or directories with .txt and .md files [default: the docs of this program's dependencies]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    text: Vec<PathBuf>,
    /// Folder for the SAEs and the picture
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
    /// Latents of an SAE; with several numbers, one SAE for each number trains on the same minibatches
    #[arg(long, value_delimiter = ',', default_value = "1536")]
    latents: Vec<usize>,
    /// Latents active per row
    #[arg(short, default_value_t = 32)]
    k: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 0.002)]
    rate: f32,
    /// Take the rows of the threads in turn, not as they come; the same arguments then give the same SAEs to the last bit
    #[arg(long)]
    reproducible: bool,
    /// Save a checkpoint of the SAEs, their optimiser and the store here, once for every window of rows
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Minibatches between two checkpoints [default: a window of rows]
    #[arg(long, value_name = "N", requires = "checkpoint")]
    checkpoint_every: Option<u64>,
    /// Also save the rows in the ring; a resumed run then captures none of them again
    #[arg(long, requires = "checkpoint")]
    full: bool,
    /// Go on from the newest checkpoint; with --reproducible, the SAEs are the same to the last bit as without the stop
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Record what is captured into this new folder, too; with --resume, go on with the recording there
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Train on this recording, in place of the model
    #[arg(long, value_name = "DIR", conflicts_with_all = ["record", "rows", "model", "text", "capture_threads"])]
    replay: Option<PathBuf>,
    /// How often to train on each row of the recording [default: 1]
    #[arg(long)]
    epochs: Option<u64>,
    /// Seed of everything that is random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seeds of the first weights of the SAEs; with several seeds, one SAE of each size trains for each seed [default: the value of --seed]
    #[arg(long, value_delimiter = ',')]
    sae_seeds: Option<Vec<u64>>,
}

impl Args {
    /// Checks what neither clap nor the store checks.
    fn check(&self) -> Result<()> {
        ensure!(self.batch_size > 1, "--batch-size {}: one row has no variance to start from", self.batch_size);
        ensure!(self.rows >= self.batch_size, "--rows {}: less than one minibatch of {}", self.rows, self.batch_size);
        ensure!(self.capture_threads > 0, "--capture-threads 0: at least one thread must capture");
        for latents in &self.latents {
            ensure!((1..=*latents).contains(&self.k), "-k {}: it must be 1 to the {latents} latents", self.k);
        }
        if let Some(epochs) = self.epochs {
            ensure!(self.replay.is_some(), "--epochs {epochs}: only a recording has epochs; use it with --replay");
            ensure!(epochs > 0, "--epochs 0: there would be nothing to train on");
        }
        if let Some(dir) = self.record.as_ref().filter(|dir| dir.exists()) {
            let dir = dir.display();
            ensure!(self.resume, "--record: {dir} is there already; take another folder, or go on with it by --resume");
        }
        ensure!(self.rate > 0.0 && self.rate.is_finite(), "--rate {}: it must be a positive number", self.rate);
        differ("--layers", self.layers.as_deref().unwrap_or_default())?;
        differ("--latents", &self.latents)?;
        differ("--sae-seeds", self.sae_seeds.as_deref().unwrap_or_default())?;
        Ok(())
    }

    /// Returns the plans of the SAEs of each layer, for a training on `rows` rows.
    fn plans(&self, rows: usize) -> Vec<Plan> {
        let (k, rate, steps) = (self.k, self.rate, rows.div_ceil(self.batch_size));
        let seeds = self.sae_seeds.as_deref().unwrap_or(std::slice::from_ref(&self.seed));
        let plan = |&latents: &usize| seeds.iter().map(move |&seed| Plan { latents, k, rate, steps, seed });
        self.latents.iter().flat_map(plan).collect()
    }
}

fn differ<T: PartialEq + std::fmt::Display>(option: &str, values: &[T]) -> Result<()> {
    for (index, value) in values.iter().enumerate() {
        ensure!(!values[..index].contains(value), "{option}: {value} is there twice");
    }
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::parse();
    args.check()?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;

    let (source, layers) = match &args.replay {
        Some(dir) => Source::recording(dir, args.layers.as_deref(), args.epochs.unwrap_or(1), args.seed)?,
        None => {
            let capture = capture(&args)?;
            let layers = capture.held_out()?;
            (Source::Model(Box::new(capture)), layers)
        }
    };
    let plans = args.plans(source.rows());
    let component = |layer: &Layer| Component::new(&layer.name, layer.held_out.clone(), &plans);
    let mut components: Vec<Component> = layers.iter().map(component).collect();
    let run = feed_and_train(&args, &source, &layers, &mut components)?;
    run.report(&components, &args.out)
}

/// Loads the model and its text.
fn capture(args: &Args) -> Result<Capture> {
    let dir = fetch::model_dir(args.model.as_deref())?;
    let layers = args.layers.clone().unwrap_or_else(|| vec![2, 4]);
    let hooked =
        Hooked { model: Bert::load(&dir, layers.iter().copied().max())?, tokenizer: Tokenizer::load(&dir)?, layers };
    let corpus = if args.text.is_empty() { Corpus::from_dependencies()? } else { Corpus::from_paths(&args.text)? };
    let length = LENGTH.min(hooked.model.max_positions()) - 2;
    let dataset = Dataset::new(&corpus, &hooked.tokenizer, length, args.rows, args.capture_threads, args.seed)?;
    let (tokens, rows) = (dataset.training_rows(), args.rows);
    println!("text: {:.1} MB from {}", corpus.bytes() as f64 / 1e6, corpus.origin);
    if tokens < rows {
        println!("note: it has {tokens} tokens to train on, so it is read {:.1} times", rows as f64 / tokens as f64);
    }
    let capture = Capture::new(hooked, dataset, rows);
    Ok(match &args.record {
        // A replay mixes over the ring's window, which should hold rows of many shards.
        Some(to) => capture.record(to, (args.window / 8).max(1), &dir, &corpus.origin),
        None => capture,
    })
}

/// Does the main job: the source of rows fills the store while the training loop takes minibatches from it.
fn feed_and_train(args: &Args, source: &Source, layers: &[Layer], components: &mut [Component]) -> Result<Run> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let builder = RingStore::builder()
        .batch_size(args.batch_size)
        .window(args.window)
        .seed(args.seed)
        .merge(if args.reproducible { Merge::RoundRobin } else { Merge::Arrival });
    let every = args.checkpoint_every.unwrap_or((args.window / args.batch_size) as u64).max(1);
    let form = if args.full { Form::Full } else { Form::Light };
    let checkpoints = args.checkpoint.clone().map(|dir| Checkpoints::new(dir, every, form)).transpose()?;
    let resumed = match &checkpoints {
        Some(checkpoints) if args.resume => checkpoints.load(components)?,
        _ => None,
    };
    match &resumed {
        Some((k, snapshot)) => println!("resumed behind minibatch {k} from {}", snapshot.display()),
        None if args.resume => println!("note: there is no checkpoint yet, so the run starts anew"),
        None => {}
    }
    let snapshot = resumed.as_ref().map(|(_, snapshot)| Path::new(snapshot));
    let store = source.store(builder, layers, snapshot)?;
    let monitor = store.monitor();
    let progress = Progress::new(source.rows(), args.window);
    let start = Instant::now();
    let (stop, stopped) = oneshot::channel();
    let watcher = runtime.spawn(watch(monitor.clone(), start, progress.clone(), stopped));
    runtime.spawn(stop_at_ctrl_c(store.clone()));

    source
        .run(&store, |minibatches| runtime.block_on(train(minibatches, components, start, &progress, checkpoints)))?;
    let elapsed = start.elapsed();
    drop(stop);
    let fill = runtime.block_on(watcher)?;
    progress.finish();
    Ok(Run { elapsed, fill, window: args.window, stats: monitor.stats() })
}

/// Waits for Ctrl-C. The first one ends the capture after its pass, or the replay. The training goes on with the rows in the store, and
/// the program prints its summary. A second Ctrl-C ends the program.
async fn stop_at_ctrl_c(store: RingStore) {
    if tokio::signal::ctrl_c().await.is_ok() {
        eprintln!("stopping: what is in the store is still trained on (Ctrl-C again ends at once)");
        store.close();
    }
    if tokio::signal::ctrl_c().await.is_ok() {
        process::exit(130);
    }
}
