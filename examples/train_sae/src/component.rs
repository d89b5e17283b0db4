//! One hooked layer: its SAEs, and how good they are.

use std::fmt;

use anyhow::{Context as _, Result};
use ndarray::{Array2, ArrayView2};

use crate::checkpoint::Visitor;
use crate::pca::Covariance;
use crate::sae::Sae;
use crate::trainer::Trainer;

/// The sizes and rates of an SAE.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) latents: usize,
    pub(crate) k: usize,
    pub(crate) rate: f32,
    /// How many minibatches there will be.
    pub(crate) steps: usize,
    pub(crate) seed: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { latents, k, rate, steps, seed } = self;
        write!(f, "{latents} latents, {k} active, rate {rate}, {steps} steps, seed {seed}")
    }
}

/// A hooked layer.
pub(crate) struct Component {
    pub(crate) name: String,
    pub(crate) students: Vec<Student>,
    held_out: Array2<f32>,
    covariance: Covariance,
}

/// An SAE in training, and its losses so far.
pub(crate) struct Student {
    /// The name of the component, and of the SAE if the component has several.
    pub(crate) name: String,
    pub(crate) plan: Plan,
    /// `None` before the first minibatch.
    trainer: Option<Trainer>,
    before: f64,
    /// Seconds since the start, and the loss of the minibatch.
    pub(crate) losses: Vec<(f64, f64)>,
}

/// The result for one SAE, on held-out rows.
pub(crate) struct Outcome {
    pub(crate) before: f64,
    pub(crate) after: f64,
    pub(crate) l0: f64,
    pub(crate) dead: usize,
    /// The number of principal components to compare with, and the variance that they leave unexplained.
    pub(crate) pca: (usize, f64),
}

impl Component {
    /// Makes one SAE for each of `plans`. The rows of `held_out` judge them.
    pub(crate) fn new(name: &str, held_out: Array2<f32>, plans: &[Plan]) -> Self {
        let student = |plan: &Plan| {
            let name = match plans {
                [_] => name.to_owned(),
                _ => format!("{name}.{}.seed{}", plan.latents, plan.seed),
            };
            Student { name, plan: plan.clone(), trainer: None, before: f64::NAN, losses: Vec::new() }
        };
        let covariance = Covariance::new(held_out.ncols());
        Self { name: name.to_owned(), students: plans.iter().map(student).collect(), held_out, covariance }
    }

    /// Visits the whole state of the training.
    pub(crate) fn visit(&mut self, visitor: &mut impl Visitor) -> Result<()> {
        self.covariance.visit(&format!("{}.covariance", self.name), visitor)?;
        let width = self.held_out.ncols();
        self.students.iter_mut().try_for_each(|student| student.visit(width, visitor))
    }

    /// Trains every SAE on a minibatch, at `time` seconds since the start.
    pub(crate) fn step(&mut self, rows: ArrayView2<'_, f32>, time: f64) {
        self.covariance.add(rows);
        for student in &mut self.students {
            student.step(rows, self.held_out.view(), time);
        }
    }

    /// Returns the results of its SAEs.
    pub(crate) fn outcomes(&self) -> Result<Vec<Outcome>> {
        self.students.iter().map(|student| student.outcome(self.held_out.view(), &self.covariance)).collect()
    }
}

impl Student {
    fn visit(&mut self, width: usize, visitor: &mut impl Visitor) -> Result<()> {
        let (name, plan) = (&self.name, &self.plan);
        let new = || Trainer::new(Sae::zeros(plan.latents, plan.k, width), plan.rate, plan.steps);
        self.trainer.get_or_insert_with(new).visit(name, visitor)?;
        visitor.numbers(&format!("{name}.before"), std::slice::from_mut(&mut self.before))?;
        let (mut times, mut losses): (Vec<f64>, Vec<f64>) = self.losses.iter().copied().unzip();
        visitor.list(&format!("{name}.times"), &mut times)?;
        visitor.list(&format!("{name}.losses"), &mut losses)?;
        self.losses = times.into_iter().zip(losses).collect();
        Ok(())
    }

    /// Trains on a minibatch. The first one also sets the start of the SAE.
    fn step(&mut self, rows: ArrayView2<'_, f32>, held_out: ArrayView2<'_, f32>, time: f64) {
        let plan = &self.plan;
        let trainer = self.trainer.get_or_insert_with(|| {
            let sae = Sae::new(plan.latents, plan.k, plan.seed, rows);
            self.before = sae.forward(held_out).unexplained();
            Trainer::new(sae, plan.rate, plan.steps)
        });
        self.losses.push((time, trainer.step(rows)));
    }

    /// Returns the trained SAE.
    pub(crate) fn sae(&self) -> Result<&Sae> {
        self.trained().map(|trainer| &trainer.sae)
    }

    fn trained(&self) -> Result<&Trainer> {
        self.trainer.as_ref().context("there was no minibatch to train on")
    }

    fn outcome(&self, held_out: ArrayView2<'_, f32>, covariance: &Covariance) -> Result<Outcome> {
        let trainer = self.trained()?;
        let pass = trainer.sae.forward(held_out);
        let components = pass.l0().round() as usize;
        Ok(Outcome {
            before: self.before,
            after: pass.unexplained(),
            l0: pass.l0(),
            dead: trainer.dead(self.losses.len().div_ceil(4)),
            pca: (components, covariance.unexplained(held_out, components)),
        })
    }
}
