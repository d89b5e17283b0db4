//! Hooks: from sequences to rows of the residual stream.

use anyhow::Result;
use candle_core::{Device, Tensor};

use crate::model::Bert;
use crate::tokens::{Sequence, Tokenizer};

/// Sequences in one forward pass. More do not make the model faster on a CPU, and fewer keep its tensors in cache.
const SEQUENCES: usize = 8;

/// A model with hooks at some of its layers.
pub(crate) struct Hooked {
    pub(crate) model: Bert,
    pub(crate) tokenizer: Tokenizer,
    /// Layer of each component.
    pub(crate) layers: Vec<usize>,
}

impl Hooked {
    /// Runs `sequences` through the model, over and over, until `rows` tokens have passed.
    ///
    /// `sink` is called from the hook with a component and its rows, `[row, width]` in one vector. Special tokens and
    /// padding are not among them. Every component gets the same tokens in the same order.
    pub(crate) fn capture(
        &self,
        sequences: &[Sequence],
        rows: usize,
        sink: &mut dyn FnMut(usize, Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        let mut missing = rows;
        let mut sequences = sequences.iter().cycle();
        while missing > 0 {
            let batch: Vec<_> = sequences.by_ref().take(SEQUENCES).collect();
            let mut padded = self.tokenizer.pad(&batch)?;
            padded.tokens.truncate(missing);
            let rows = Tensor::new(padded.tokens.as_slice(), &Device::Cpu)?;
            self.model.forward(&padded.ids, &padded.mask, &mut |layer, residual| {
                if let Some(component) = self.layers.iter().position(|&hooked| hooked == layer) {
                    let captured = residual.flatten(0, 1)?.index_select(&rows, 0)?;
                    sink(component, captured.flatten_all()?.to_vec1()?)?;
                }
                Ok(())
            })?;
            missing -= padded.tokens.len();
        }
        Ok(())
    }
}
