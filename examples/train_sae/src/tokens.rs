//! Turns text into padded batches of token ids, and finds the positions that hold real tokens.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use candle_core::{Device, Tensor};

/// The tokens of one stretch of text, without special tokens.
pub(crate) type Sequence = Vec<u32>;

/// The tokeniser of the model.
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of `dir`.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let file = dir.join("tokenizer.json");
        let mut inner = tokenizers::Tokenizer::from_file(&file)
            .map_err(|error| anyhow!("cannot read {}: {error}", file.display()))?;
        // This program pads and truncates in its own way, not as the file says.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| anyhow!(error))?;
        let special =
            |token: &str| inner.token_to_id(token).with_context(|| format!("{} has no token {token}", file.display()));
        Ok(Self { start: special("[CLS]")?, end: special("[SEP]")?, pad: special("[PAD]")?, inner })
    }

    /// Returns the tokens of `text` in sequences of at most `length` tokens.
    pub(crate) fn sequences(&self, text: &str, length: usize) -> Result<Vec<Sequence>> {
        let encoding = self.inner.encode(text, false).map_err(|error| anyhow!("cannot tokenise: {error}"))?;
        Ok(encoding.get_ids().chunks(length).map(<[u32]>::to_vec).collect())
    }

    /// Puts each sequence between `[CLS]` and `[SEP]`, and pads all to the longest, as the model needs them.
    pub(crate) fn pad(&self, sequences: &[&Sequence]) -> Result<Padded> {
        let length = sequences.iter().map(|sequence| sequence.len() + 2).max().unwrap_or(0);
        let mut ids = vec![self.pad; sequences.len() * length];
        let mut mask = vec![0f32; ids.len()];
        let mut tokens = Vec::new();
        for (index, sequence) in sequences.iter().enumerate() {
            let start = index * length;
            let end = start + sequence.len() + 1;
            ids[start] = self.start;
            ids[start + 1..end].copy_from_slice(sequence);
            ids[end] = self.end;
            mask[start..=end].fill(1.0);
            tokens.extend((start + 1..end).map(|position| position as u32));
        }
        let shape = (sequences.len(), length);
        Ok(Padded {
            ids: Tensor::from_vec(ids, shape, &Device::Cpu)?,
            mask: Tensor::from_vec(mask, shape, &Device::Cpu)?,
            tokens,
        })
    }
}

/// A batch of padded sequences.
pub(crate) struct Padded {
    /// `[sequence, position]`
    pub(crate) ids: Tensor,
    /// 1 at every token, also at special ones. 0 at padding.
    pub(crate) mask: Tensor,
    /// The positions of the tokens that are neither special nor padding, counted through the whole batch.
    pub(crate) tokens: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch;

    #[test]
    fn neither_special_tokens_nor_padding_are_rows() {
        let tokenizer = Tokenizer::load(&fetch::model_dir(None).unwrap()).unwrap();
        let long = tokenizer.sequences("A cat sleeps on the warm windowsill.", 126).unwrap().remove(0);
        let short = tokenizer.sequences("A cat.", 126).unwrap().remove(0);
        let padded = tokenizer.pad(&[&short, &long]).unwrap();
        // From BertTokenizer of transformers.
        let expected = [
            [101, 1037, 4937, 1012, 102, 0, 0, 0, 0, 0, 0],
            [101, 1037, 4937, 25126, 2006, 1996, 4010, 3645, 8591, 1012, 102],
        ];
        assert_eq!(padded.ids.to_vec2::<u32>().unwrap(), expected);
        assert_eq!(padded.tokens, [1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
        let mask: Vec<f32> = padded.mask.get(0).unwrap().to_vec1().unwrap();
        assert_eq!(mask, [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_long_text_is_cut_without_losing_tokens() {
        let tokenizer = Tokenizer::load(&fetch::model_dir(None).unwrap()).unwrap();
        let text = "one two three four five six seven ".repeat(10);
        let sequences = tokenizer.sequences(&text, 16).unwrap();
        assert!(sequences.iter().all(|sequence| sequence.len() <= 16));
        assert_eq!(sequences.concat(), tokenizer.sequences(&text, 1000).unwrap().concat());
    }
}
