//! The asynchronous training loop: one SAE per component, on the same minibatches.

use std::time::{Duration, Instant};

use activation_store::{Minibatches, RingStore, Stats};
use anyhow::{Context as _, Result};
use ndarray::Array2;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::pca::Covariance;
use crate::progress::Progress;
use crate::sae::Sae;
use crate::trainer::Trainer;

/// Sizes and rates of the SAEs.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) latents: usize,
    pub(crate) k: usize,
    pub(crate) rate: f32,
    /// Minibatches there will be.
    pub(crate) steps: usize,
    pub(crate) seed: u64,
}

/// What is learnt and noted about one component.
pub(crate) struct Component {
    pub(crate) name: String,
    held_out: Array2<f32>,
    covariance: Covariance,
    /// None before the first minibatch.
    trainer: Option<Trainer>,
    before: f64,
    /// Seconds since the start, and loss of the minibatch.
    pub(crate) losses: Vec<(f64, f64)>,
}

/// The result for one component, on held-out rows.
pub(crate) struct Outcome {
    pub(crate) before: f64,
    pub(crate) after: f64,
    pub(crate) l0: f64,
    pub(crate) dead: usize,
    /// Number of principal components compared with, and what they leave unexplained.
    pub(crate) pca: (usize, f64),
}

impl Component {
    pub(crate) fn new(name: String, held_out: Array2<f32>) -> Self {
        let covariance = Covariance::new(held_out.ncols());
        Self { name, held_out, covariance, trainer: None, before: f64::NAN, losses: Vec::new() }
    }

    /// Trains on a minibatch; the first one also says how to start.
    fn step(&mut self, plan: &Plan, rows: ndarray::ArrayView2<'_, f32>) -> f64 {
        self.covariance.add(rows);
        let trainer = self.trainer.get_or_insert_with(|| {
            let sae = Sae::new(plan.latents, plan.k, plan.seed, rows);
            self.before = sae.forward(self.held_out.view()).unexplained();
            Trainer::new(sae, plan.rate, plan.steps)
        });
        trainer.step(rows)
    }

    /// The trained SAE.
    pub(crate) fn sae(&self) -> Result<&Sae> {
        self.trained().map(|trainer| &trainer.sae)
    }

    fn trained(&self) -> Result<&Trainer> {
        self.trainer.as_ref().context("there was no minibatch to train on")
    }

    pub(crate) fn outcome(&self) -> Result<Outcome> {
        let trainer = self.trained()?;
        let pass = trainer.sae.forward(self.held_out.view());
        let components = pass.l0().round() as usize;
        Ok(Outcome {
            before: self.before,
            after: pass.unexplained(),
            l0: pass.l0(),
            dead: trainer.dead(self.losses.len().div_ceil(4)),
            pca: (components, self.covariance.unexplained(self.held_out.view(), components)),
        })
    }
}

/// Trains on every minibatch until the stream ends.
pub(crate) async fn train(
    mut minibatches: Minibatches,
    components: &mut [Component],
    plan: Plan,
    start: Instant,
    progress: &Progress,
) -> Result<()> {
    while let Some(minibatch) = minibatches.next().await {
        let minibatch = minibatch?;
        // The step is all computation: the runtime may move its other tasks to another thread meanwhile.
        tokio::task::block_in_place(|| -> Result<()> {
            for (index, component) in components.iter_mut().enumerate() {
                let loss = component.step(&plan, minibatch.view::<f32>(index)?);
                component.losses.push((start.elapsed().as_secs_f64(), loss));
            }
            Ok(())
        })?;
        progress.losses(components.iter().filter_map(|c| Some((c.name.as_str(), c.losses.last()?.1))));
    }
    Ok(())
}

/// Looks at the store now and then, until `stop` or its sender is dropped. Returns the rows in the ring over time.
pub(crate) async fn watch(
    store: RingStore,
    start: Instant,
    progress: Progress,
    mut stop: oneshot::Receiver<()>,
) -> Vec<(f64, f64)> {
    let mut fill = Vec::new();
    loop {
        let stats: Stats = store.stats();
        progress.store(&stats);
        let resident = stats.components.first().map_or(0, |component| component.resident);
        fill.push((start.elapsed().as_secs_f64(), resident as f64));
        if timeout(Duration::from_millis(100), &mut stop).await.is_ok() {
            return fill;
        }
    }
}
