//! A top-k sparse autoencoder whose gradient is written by hand.
//!
//! Only `k` latents of a row are active, so decoding and each gradient cost `k` products of vectors per row. Only the encoder is a
//! dense product.

use std::path::Path;

use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use safetensors::tensor::{Dtype, TensorView};

use crate::checkpoint::Visitor;

/// One array for each parameter. The arrays hold the values, their gradients, or the running means of an optimiser.
pub(crate) struct Parameters {
    /// `[latent, width]`
    pub(crate) encoder: Array2<f32>,
    pub(crate) encoder_bias: Array1<f32>,
    /// `[latent, width]`
    pub(crate) decoder: Array2<f32>,
    pub(crate) decoder_bias: Array1<f32>,
}

impl Parameters {
    pub(crate) fn zeros(latents: usize, width: usize) -> Self {
        Self {
            encoder: Array2::zeros((latents, width)),
            encoder_bias: Array1::zeros(latents),
            decoder: Array2::zeros((latents, width)),
            decoder_bias: Array1::zeros(width),
        }
    }

    pub(crate) fn visit(&mut self, name: &str, visitor: &mut impl Visitor) -> Result<()> {
        let Parameters { encoder, encoder_bias, decoder, decoder_bias } = self;
        let parts = [
            ("encoder", encoder.as_slice_mut()),
            ("decoder", decoder.as_slice_mut()),
            ("encoder_bias", encoder_bias.as_slice_mut()),
            ("decoder_bias", decoder_bias.as_slice_mut()),
        ];
        parts
            .into_iter()
            .try_for_each(|(part, numbers)| visitor.numbers(&format!("{name}.{part}"), numbers.context("contiguous")?))
    }

    /// Returns the number of latents and the width.
    pub(crate) fn dim(&self) -> (usize, usize) {
        self.decoder.dim()
    }

    /// Scales each row of the decoder to length 1.
    pub(crate) fn normalise_decoder(&mut self) {
        for mut row in self.decoder.rows_mut() {
            let length = row.dot(&row).sqrt().max(f32::MIN_POSITIVE);
            row /= length;
        }
    }
}

/// The autoencoder. Divides rows by `scale`, so one learning rate suits every layer.
pub(crate) struct Sae {
    /// The parameters. The rows of the decoder have length 1.
    pub(crate) weights: Parameters,
    scale: f32,
    /// The most latents that are active per row.
    k: usize,
}

/// The active latents of one row, with their values.
type Code = Vec<(usize, f32)>;

/// The result of a forward pass of an SAE.
pub(crate) struct Pass {
    /// The rows, scaled and minus the decoder bias.
    centred: Array2<f32>,
    pub(crate) codes: Vec<Code>,
    /// The rebuilt rows minus the true rows.
    residual: Array2<f32>,
}

impl Sae {
    /// Makes an SAE with random directions. The encoder starts tied to the decoder. `rows` give the scale and the bias.
    pub(crate) fn new(latents: usize, k: usize, seed: u64, rows: ArrayView2<'_, f32>) -> Self {
        let width = rows.ncols();
        let mut weights = Parameters::zeros(latents, width);
        let scale = (variance(rows) / rows.len().max(1) as f64).sqrt().max(1e-12) as f32;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        weights.decoder.mapv_inplace(|_| random.random::<f32>() - 0.5);
        weights.normalise_decoder();
        weights.encoder.assign(&weights.decoder);
        weights.decoder_bias = mean(rows) / scale;
        Self { weights, scale, k }
    }

    /// Makes an SAE whose parameters are loaded later.
    pub(crate) fn zeros(latents: usize, k: usize, width: usize) -> Self {
        Self { weights: Parameters::zeros(latents, width), scale: 1.0, k }
    }

    pub(crate) fn visit(&mut self, name: &str, visitor: &mut impl Visitor) -> Result<()> {
        self.weights.visit(&format!("{name}.weights"), visitor)?;
        visitor.numbers(&format!("{name}.scale"), std::slice::from_mut(&mut self.scale))
    }

    /// Encodes and decodes `rows`.
    pub(crate) fn forward(&self, rows: ArrayView2<'_, f32>) -> Pass {
        let centred = rows.mapv(|x| x / self.scale) - &self.weights.decoder_bias;
        let codes = self.encode(&centred);
        let mut residual = centred.mapv(|x| -x);
        for (mut row, code) in residual.rows_mut().into_iter().zip(&codes) {
            for &(latent, value) in code {
                row.scaled_add(value, &self.weights.decoder.row(latent));
            }
        }
        Pass { centred, codes, residual }
    }

    /// Returns the `k` largest latents of each row that are above zero.
    fn encode(&self, centred: &Array2<f32>) -> Vec<Code> {
        let latents = centred.dot(&self.weights.encoder.t()) + &self.weights.encoder_bias;
        let top = |row: ndarray::ArrayView1<'_, f32>| {
            let mut code: Code = row.iter().copied().enumerate().filter(|&(_, value)| value > 0.0).collect();
            if code.len() > self.k {
                code.select_nth_unstable_by(self.k, |a, b| b.1.total_cmp(&a.1));
                code.truncate(self.k);
            }
            code
        };
        latents.rows().into_iter().map(top).collect()
    }

    /// Returns the gradient of the loss: the squared length of the residual, averaged over the rows.
    pub(crate) fn gradient(&self, pass: &Pass) -> Parameters {
        let (latents, width) = self.weights.dim();
        let mut gradient = Parameters::zeros(latents, width);
        let factor = 2.0 / pass.codes.len() as f32;
        for ((code, x), residual) in pass.codes.iter().zip(pass.centred.rows()).zip(pass.residual.rows()) {
            gradient.decoder_bias.scaled_add(factor, &residual);
            for &(latent, value) in code {
                let back = factor * self.weights.decoder.row(latent).dot(&residual);
                gradient.decoder.row_mut(latent).scaled_add(factor * value, &residual);
                gradient.encoder.row_mut(latent).scaled_add(back, &x);
                gradient.encoder_bias[latent] += back;
            }
        }
        // The decoder bias is added after the decoder and subtracted before the encoder.
        gradient.decoder_bias -= &gradient.encoder_bias.dot(&self.weights.encoder);
        gradient
    }

    /// Writes the parameters for captured rows that are not scaled. Uses the names and the layout of other tools: `W_enc`
    /// `[width, latent]`, `b_enc`, `W_dec` `[latent, width]` and `b_dec`. `k` is in the metadata.
    ///
    /// The SAE turns a row `x` into `relu(top_k((x - b_dec) W_enc + b_enc)) W_dec + b_dec`.
    pub(crate) fn save(&self, file: &Path) -> Result<()> {
        let (latents, width) = self.weights.dim();
        let weights = &self.weights;
        let parameters = [
            ("W_enc", vec![width, latents], bytes(weights.encoder.t().iter(), 1.0)),
            ("b_enc", vec![latents], bytes(weights.encoder_bias.iter(), self.scale)),
            ("W_dec", vec![latents, width], bytes(weights.decoder.iter(), 1.0)),
            ("b_dec", vec![width], bytes(weights.decoder_bias.iter(), self.scale)),
        ];
        let views = parameters
            .iter()
            .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        let about = [("k".to_owned(), self.k.to_string())].into();
        safetensors::serialize_to_file(views, Some(about), file)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Pass {
    /// Returns the mean square of the residual, in units of the variance of the rows with which the SAE started.
    pub(crate) fn loss(&self) -> f64 {
        squares(&self.residual) / self.residual.len() as f64
    }

    /// Returns the fraction of the variance of the rows that the rebuilt rows do not explain.
    pub(crate) fn unexplained(&self) -> f64 {
        squares(&self.residual) / variance(self.centred.view())
    }

    /// Returns the mean number of active latents per row.
    pub(crate) fn l0(&self) -> f64 {
        self.codes.iter().map(Vec::len).sum::<usize>() as f64 / self.codes.len() as f64
    }
}

fn mean(rows: ArrayView2<'_, f32>) -> Array1<f32> {
    rows.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(rows.ncols()))
}

/// Returns the sum of the squared distances of `rows` from their mean.
fn variance(rows: ArrayView2<'_, f32>) -> f64 {
    let mean = mean(rows);
    rows.rows().into_iter().flat_map(|row| row.into_iter().zip(&mean)).map(|(x, m)| f64::from(x - m).powi(2)).sum()
}

fn squares(numbers: &Array2<f32>) -> f64 {
    numbers.iter().map(|&x| f64::from(x).powi(2)).sum()
}

fn bytes<'a>(numbers: impl Iterator<Item = &'a f32>, factor: f32) -> Vec<u8> {
    numbers.flat_map(|x| (x * factor).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize, width: usize) -> Array2<f32> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        Array2::from_shape_simple_fn((count, width), || random.random::<f32>() * 3.0 - 1.0)
    }

    /// Returns the squared length of the residual, averaged over the rows.
    fn loss(sae: &Sae, rows: &Array2<f32>) -> f64 {
        squares(&sae.forward(rows.view()).residual) / rows.nrows() as f64
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let rows = rows(16, 6);
        let mut sae = Sae::new(12, 3, 2, rows.view());
        // Move away from the tied start, where some derivatives are special.
        let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
        sae.weights.encoder.mapv_inplace(|x| x + 0.3 * (random.random::<f32>() - 0.5));
        sae.weights.encoder_bias.mapv_inplace(|_| 0.3 * random.random::<f32>());
        let gradient = sae.gradient(&sae.forward(rows.view()));
        let mut check = |name: &str, derivative: f32, parameter: &dyn Fn(&mut Parameters) -> &mut f32| {
            let step = 1e-3;
            let mut at = |offset: f32| {
                let before = *parameter(&mut sae.weights);
                *parameter(&mut sae.weights) = before + offset;
                let loss = loss(&sae, &rows);
                *parameter(&mut sae.weights) = before;
                loss
            };
            let measured = (at(step) - at(-step)) / f64::from(2.0 * step);
            let error = (measured - f64::from(derivative)).abs();
            assert!(error < 2e-3 + 0.01 * measured.abs(), "{name}: {derivative} is not {measured}");
        };
        for latent in 0..12 {
            check("encoder bias", gradient.encoder_bias[latent], &|w| &mut w.encoder_bias[latent]);
            for x in 0..6 {
                check("encoder", gradient.encoder[[latent, x]], &|w| &mut w.encoder[[latent, x]]);
                check("decoder", gradient.decoder[[latent, x]], &|w| &mut w.decoder[[latent, x]]);
            }
        }
        for x in 0..6 {
            check("decoder bias", gradient.decoder_bias[x], &|w| &mut w.decoder_bias[x]);
        }
    }

    #[test]
    fn codes_hold_the_largest_latents_above_zero() {
        let rows = rows(8, 5);
        let sae = Sae::new(10, 2, 4, rows.view());
        let pass = sae.forward(rows.view());
        let latents = pass.centred.dot(&sae.weights.encoder.t());
        for (row, code) in latents.rows().into_iter().zip(&pass.codes) {
            let mut sorted = row.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted.retain(|&value| value > 0.0);
            sorted.truncate(2);
            let mut values: Vec<_> = code.iter().map(|&(_, value)| value).collect();
            values.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(values, sorted);
        }
    }

    #[test]
    fn the_saved_parameters_rebuild_unscaled_rows_alike() {
        let rows = rows(8, 5);
        let sae = Sae::new(10, 10, 4, rows.view());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sae.safetensors");
        sae.save(&file).unwrap();
        let bytes = std::fs::read(file).unwrap();
        let saved = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str| {
            let view = saved.tensor(name).unwrap();
            let numbers = view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let (rows, columns) = match *view.shape() {
                [columns] => (1, columns),
                [rows, columns] => (rows, columns),
                _ => panic!("{name} has another rank"),
            };
            Array2::from_shape_vec((rows, columns), numbers).unwrap()
        };
        let latents = ((&rows - &read("b_dec")).dot(&read("W_enc")) + read("b_enc")).mapv(|x| x.max(0.0));
        let rebuilt = latents.dot(&read("W_dec")) + read("b_dec");
        let expected = sae.forward(rows.view()).residual * sae.scale;
        assert!((rebuilt - &rows - expected).iter().all(|x| x.abs() < 1e-5));
    }
}
