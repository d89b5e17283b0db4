//! Trains an SAE with Adam.

use anyhow::Result;
use ndarray::{Array, ArrayView2, Dimension, Zip};

use crate::checkpoint::Visitor;
use crate::sae::{Parameters, Sae};

/// An SAE in training.
pub(crate) struct Trainer {
    pub(crate) sae: Sae,
    /// The highest learning rate.
    rate: f32,
    /// How many steps the training has.
    steps: usize,
    step: usize,
    /// The running means of the gradient. `square` has the running means of its square.
    momentum: Parameters,
    square: Parameters,
    /// The step in which each latent was last active.
    active: Vec<usize>,
}

impl Trainer {
    /// Prepares a training of `steps` minibatches. The learning rate rises over the first ones and falls over the last ones.
    pub(crate) fn new(sae: Sae, rate: f32, steps: usize) -> Self {
        let (latents, width) = sae.weights.dim();
        Self {
            sae,
            rate,
            steps,
            step: 0,
            momentum: Parameters::zeros(latents, width),
            square: Parameters::zeros(latents, width),
            active: vec![0; latents],
        }
    }

    pub(crate) fn visit(&mut self, name: &str, visitor: &mut impl Visitor) -> Result<()> {
        self.sae.visit(&format!("{name}.sae"), visitor)?;
        self.momentum.visit(&format!("{name}.momentum"), visitor)?;
        self.square.visit(&format!("{name}.square"), visitor)?;
        let mut counts: Vec<u64> = [&[self.step], &self.active[..]].concat().into_iter().map(|n| n as u64).collect();
        visitor.numbers(&format!("{name}.steps"), &mut counts)?;
        self.step = counts[0] as usize;
        self.active = counts[1..].iter().map(|&n| n as usize).collect();
        Ok(())
    }

    /// Trains one step on a minibatch. Returns the loss before the step.
    pub(crate) fn step(&mut self, rows: ArrayView2<'_, f32>) -> f64 {
        self.step += 1;
        let pass = self.sae.forward(rows);
        let mut gradient = self.sae.gradient(&pass);
        // Keep only the part of the gradient that turns a direction of the decoder, because its length goes back to 1.
        Zip::from(gradient.decoder.rows_mut()).and(self.sae.weights.decoder.rows()).for_each(|mut gradient, row| {
            let along = gradient.dot(&row);
            gradient.scaled_add(-along, &row);
        });
        self.descend(&gradient);
        self.sae.weights.normalise_decoder();
        for &(latent, _) in pass.codes.iter().flatten() {
            self.active[latent] = self.step;
        }
        pass.loss()
    }

    /// Counts the latents that no row of the last `steps` minibatches made active.
    pub(crate) fn dead(&self, steps: usize) -> usize {
        self.active.iter().filter(|&&active| active + steps <= self.step).count()
    }

    fn descend(&mut self, gradient: &Parameters) {
        let adam = Adam::at(self.step, self.rate * schedule(self.step, self.steps));
        let (w, m, v) = (&mut self.sae.weights, &mut self.momentum, &mut self.square);
        adam.update(&mut w.encoder, &gradient.encoder, &mut m.encoder, &mut v.encoder);
        adam.update(&mut w.encoder_bias, &gradient.encoder_bias, &mut m.encoder_bias, &mut v.encoder_bias);
        adam.update(&mut w.decoder, &gradient.decoder, &mut m.decoder, &mut v.decoder);
        adam.update(&mut w.decoder_bias, &gradient.decoder_bias, &mut m.decoder_bias, &mut v.decoder_bias);
    }
}

/// Returns the factor of the learning rate. It rises over the first twentieth of the training, and falls over the last third.
fn schedule(step: usize, steps: usize) -> f32 {
    let done = step as f32 / steps.max(1) as f32;
    (done * 20.0).min((1.0 - done) * 3.0).clamp(0.01, 1.0)
}

/// The factors of one step of Adam.
struct Adam {
    rate: f32,
    /// The running means are multiplied with these, because they start from zero.
    momentum_correction: f32,
    square_correction: f32,
}

impl Adam {
    const MOMENTUM: f32 = 0.9;
    const SQUARE: f32 = 0.999;
    const EPSILON: f32 = 1e-8;

    fn at(step: usize, rate: f32) -> Self {
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        Self {
            rate,
            momentum_correction: 1.0 / (1.0 - Self::MOMENTUM.powi(step)),
            square_correction: 1.0 / (1.0 - Self::SQUARE.powi(step)),
        }
    }

    fn update<D: Dimension>(
        &self,
        weights: &mut Array<f32, D>,
        gradient: &Array<f32, D>,
        momentum: &mut Array<f32, D>,
        square: &mut Array<f32, D>,
    ) {
        Zip::from(weights).and(gradient).and(momentum).and(square).for_each(|w, &g, m, v| {
            *m += (1.0 - Self::MOMENTUM) * (g - *m);
            *v += (1.0 - Self::SQUARE) * (g * g - *v);
            let scale = (*v * self.square_correction).sqrt() + Self::EPSILON;
            *w -= self.rate * *m * self.momentum_correction / scale;
        });
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn training_finds_sparse_directions() {
        // Rows that are sums of 2 of 16 fixed directions in 8 dimensions.
        let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
        let directions = Array2::from_shape_simple_fn((16, 8), || random.random::<f32>() - 0.5);
        let mut rows = Array2::zeros((4096, 8));
        for mut row in rows.rows_mut() {
            for _ in 0..2 {
                row.scaled_add(1.0 + random.random::<f32>(), &directions.row(random.random_range(0..16)));
            }
        }
        let mut trainer = Trainer::new(Sae::new(32, 2, 6, rows.view()), 0.01, 640);
        let before = trainer.sae.forward(rows.view()).unexplained();
        for _ in 0..10 {
            for batch in rows.axis_chunks_iter(ndarray::Axis(0), 64) {
                trainer.step(batch);
            }
        }
        let pass = trainer.sae.forward(rows.view());
        assert!(pass.unexplained() < 0.5 * before.min(0.3), "{before} {}", pass.unexplained());
        assert!(pass.l0() <= 2.0);
        assert!(trainer.dead(64) < 32);
    }

    #[test]
    fn the_rate_rises_and_falls() {
        assert!(schedule(1, 1000) < 0.05);
        assert_eq!(schedule(400, 1000), 1.0);
        assert!(schedule(999, 1000) < 0.05);
    }
}
