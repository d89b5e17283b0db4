//! Runs the model with hooks, which turn sequences into rows of the residual stream.

use std::iter;

use anyhow::Result;
use candle_core::{Device, Tensor};

use crate::model::Bert;
use crate::tokens::{Padded, Sequence, Tokenizer};

/// Sequences in one forward pass. More sequences do not make the model faster on a CPU. With few, its tensors stay in the cache.
const SEQUENCES: usize = 8;

/// A model with hooks at some of its layers.
pub(crate) struct Hooked {
    pub(crate) model: Bert,
    pub(crate) tokenizer: Tokenizer,
    /// The layer of each component.
    pub(crate) layers: Vec<usize>,
}

impl Hooked {
    /// Returns the inputs of the forward passes. Reads `sequences` again from the start until `rows` tokens have passed.
    pub(crate) fn inputs(&self, sequences: &[Sequence], rows: usize) -> impl Iterator<Item = Result<Padded>> {
        let mut missing = rows;
        let mut sequences = sequences.iter().cycle();
        iter::from_fn(move || {
            (missing > 0).then(|| {
                let mut padded = self.tokenizer.pad(&sequences.by_ref().take(SEQUENCES).collect::<Vec<_>>())?;
                padded.tokens.truncate(missing);
                missing -= padded.tokens.len();
                Ok(padded)
            })
        })
    }

    /// Runs one forward pass. Each hook calls `sink` with its component and the rows, `[row, width]` in one vector.
    ///
    /// The rows have no special tokens and no padding. Every component gets the same tokens in the same order.
    pub(crate) fn forward(&self, inputs: &Padded, sink: &mut dyn FnMut(usize, Vec<f32>) -> Result<()>) -> Result<()> {
        let rows = Tensor::new(inputs.tokens.as_slice(), &Device::Cpu)?;
        self.model.forward(&inputs.ids, &inputs.mask, &mut |layer, residual| {
            if let Some(component) = self.layers.iter().position(|&hooked| hooked == layer) {
                let captured = residual.flatten(0, 1)?.index_select(&rows, 0)?;
                sink(component, captured.flatten_all()?.to_vec1()?)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}
