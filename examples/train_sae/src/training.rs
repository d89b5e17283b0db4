//! The asynchronous training loop: one SAE per component, on the same minibatches.

use std::fmt;
use std::time::{Duration, Instant};

use activation_store::{Minibatches, Monitor};
use anyhow::{Context as _, Result};
use ndarray::Array2;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::checkpoint::{Checkpoints, Visitor};
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { latents, k, rate, steps, seed } = self;
        write!(f, "{latents} latents, {k} active, rate {rate}, {steps} steps, seed {seed}")
    }
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

    /// Goes through all that is learnt and noted.
    pub(crate) fn visit(&mut self, plan: &Plan, visitor: &mut impl Visitor) -> Result<()> {
        let width = self.held_out.ncols();
        let new = || Trainer::new(Sae::zeros(plan.latents, plan.k, width), plan.rate, plan.steps);
        let name = self.name.clone();
        self.trainer.get_or_insert_with(new).visit(&name, visitor)?;
        self.covariance.visit(&format!("{name}.covariance"), visitor)?;
        visitor.numbers(&format!("{name}.before"), std::slice::from_mut(&mut self.before))?;
        let (mut times, mut losses): (Vec<f64>, Vec<f64>) = self.losses.iter().copied().unzip();
        visitor.list(&format!("{name}.times"), &mut times)?;
        visitor.list(&format!("{name}.losses"), &mut losses)?;
        self.losses = times.into_iter().zip(losses).collect();
        Ok(())
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

/// Trains on every minibatch until the stream ends. If the capture has failed, the stream ends with its error.
pub(crate) async fn train(
    mut minibatches: Minibatches,
    components: &mut [Component],
    plan: Plan,
    start: Instant,
    progress: &Progress,
    mut checkpoints: Option<Checkpoints>,
) -> Result<()> {
    while let Some(minibatch) = minibatches.try_next().await? {
        // The step is all computation: the runtime may move its other tasks to another thread meanwhile.
        tokio::task::block_in_place(|| -> Result<()> {
            for (index, component) in components.iter_mut().enumerate() {
                let loss = component.step(&plan, minibatch.view::<f32>(index)?);
                component.losses.push((start.elapsed().as_secs_f64(), loss));
            }
            Ok(())
        })?;
        progress.losses(components.iter().filter_map(|c| Some((c.name.as_str(), c.losses.last()?.1))));
        if let Some(checkpoints) = &mut checkpoints {
            checkpoints.save(minibatch.ordinal() + 1, components, &plan, &minibatches).await?;
        }
    }
    if let Some(checkpoints) = &mut checkpoints {
        checkpoints.finish().await?;
    }
    Ok(())
}

/// Looks at the store now and then, until `stop` or its sender is dropped. Returns the rows in the ring over time.
pub(crate) async fn watch(
    monitor: Monitor,
    start: Instant,
    progress: Progress,
    mut stop: oneshot::Receiver<()>,
) -> Vec<(f64, f64)> {
    let mut fill = Vec::new();
    loop {
        let stats = monitor.stats();
        progress.store(&stats);
        let resident = stats.components.first().map_or(0, |component| component.resident);
        fill.push((start.elapsed().as_secs_f64(), resident as f64));
        if timeout(Duration::from_millis(100), &mut stop).await.is_ok() {
            return fill;
        }
    }
}

#[cfg(test)]
mod tests {
    use activation_store::RingStore;
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_capture_that_fails_ends_the_training_with_its_error_after_the_last_row() {
        let rows = |count: usize| Array2::from_shape_fn((count, 6), |(row, x)| (row * 7 % 13 + x) as f32);
        let store = RingStore::builder().component("a", 6).batch_size(8).window(16).build().unwrap();
        let minibatches = store.minibatches();
        let capture = move |lane: activation_store::Producer| {
            lane.extend_blocking(rows(20), "a")?;
            Err(anyhow!("the text is no UTF-8"))
        };
        let capture = store.spawn_producer("capture", capture).unwrap();
        let mut components = [Component::new("a".to_owned(), rows(8))];
        let plan = Plan { latents: 12, k: 3, rate: 0.01, steps: 3, seed: 0 };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let progress = Progress::new(20, 16);
        let trained = train(minibatches, &mut components, plan, Instant::now(), &progress, None);
        let error = runtime.block_on(trained).unwrap_err();
        assert!(capture.join().is_err());
        assert!(error.to_string().contains("the text is no UTF-8"), "{error}");
        assert_eq!(components[0].losses.len(), 3); // 8, 8 and 4 rows
    }
}
