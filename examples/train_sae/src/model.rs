//! The forward pass of a BERT encoder, with a hook point after every layer.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, ops};

/// A hook. It gets the number of a layer and its residual stream, `[sequence, position, width]`.
pub(crate) type Hook<'a> = dyn FnMut(usize, &Tensor) -> Result<()> + 'a;

/// The encoder of all-MiniLM-L6-v2, or of any BERT of the same family.
pub(crate) struct Bert {
    word: Tensor,
    /// The position embedding plus the embedding of token type 0, because there is only one sentence.
    position: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
}

impl Bert {
    /// Reads `model.safetensors` and `config.json` of `dir`, and keeps the first `depth` layers (all of them if `None`).
    pub(crate) fn load(dir: &Path, depth: Option<usize>) -> Result<Self> {
        let config = Config::read(&dir.join("config.json"))?;
        let layers = depth.unwrap_or(config.layers);
        ensure!(
            layers <= config.layers,
            "layer {layers} does not exist: the model in {} has layers 1 to {}",
            dir.display(),
            config.layers
        );
        let file = dir.join("model.safetensors");
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)
            .with_context(|| format!("{} is not a safetensors file", file.display()))?;
        let embeddings = weights.pp("embeddings");
        let width = config.width;
        let position = embeddings.get((config.positions, width), "position_embeddings.weight")?;
        let kind = embeddings.get((config.types, width), "token_type_embeddings.weight")?.get(0)?;
        Ok(Self {
            word: embeddings.get((config.vocabulary, width), "word_embeddings.weight")?,
            position: position.broadcast_add(&kind)?,
            norm: Norm::load(&embeddings.pp("LayerNorm"), &config)?,
            layers: (0..layers)
                .map(|l| Layer::load(&weights.pp(format!("encoder.layer.{l}")), &config))
                .collect::<Result<_>>()?,
            heads: config.heads,
        })
    }

    /// Returns the width of the residual stream.
    pub(crate) fn width(&self) -> usize {
        self.word.dims()[1]
    }

    /// Returns the length of the longest sequence for which the model has positions.
    pub(crate) fn max_positions(&self) -> usize {
        self.position.dims()[0]
    }

    /// Runs `ids` (`[sequence, position]`, u32) through the layers. `mask` is 1 at tokens and 0 at padding (f32).
    ///
    /// Calls `hook` with the residual stream after each layer: 0 is the embedding, 1 is the first encoder layer. Returns the last residual
    /// stream.
    pub(crate) fn forward(&self, ids: &Tensor, mask: &Tensor, hook: &mut Hook<'_>) -> Result<Tensor> {
        let (sequences, length) = ids.dims2()?;
        let words = self.word.embedding(&ids.flatten_all()?)?.reshape((sequences, length, ()))?;
        let mut x = self.norm.forward(&words.broadcast_add(&self.position.narrow(0, 0, length)?)?)?;
        hook(0, &x)?;
        // The attention scores of padding become so low that softmax makes them 0.
        let bias = ((mask.reshape((sequences, 1, 1, length))? - 1.0)? * 1e9)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &bias, self.heads)?;
            hook(index + 1, &x)?;
        }
        Ok(x)
    }
}

/// The settings in `config.json`.
struct Config {
    vocabulary: usize,
    positions: usize,
    types: usize,
    width: usize,
    inner: usize,
    heads: usize,
    layers: usize,
    eps: f64,
}

impl Config {
    fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let json: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
        let number = |name: &str| -> Result<usize> {
            let value = json[name].as_u64().with_context(|| format!("{} has no {name}", file.display()))?;
            Ok(usize::try_from(value)?)
        };
        ensure!(json["model_type"] == "bert", "{} is not of a BERT model", file.display());
        Ok(Self {
            vocabulary: number("vocab_size")?,
            positions: number("max_position_embeddings")?,
            types: number("type_vocab_size")?,
            width: number("hidden_size")?,
            inner: number("intermediate_size")?,
            heads: number("num_attention_heads")?,
            layers: number("num_hidden_layers")?,
            eps: json["layer_norm_eps"].as_f64().unwrap_or(1e-12),
        })
    }
}

/// One encoder layer: attention, then a two-layer perceptron. The output of each is added to its input and normalised.
struct Layer {
    query_key_value: Linear,
    mix: Linear,
    mix_norm: Norm,
    up: Linear,
    down: Linear,
    down_norm: Norm,
}

impl Layer {
    fn load(weights: &VarBuilder<'_>, config: &Config) -> Result<Self> {
        let (width, inner) = (config.width, config.inner);
        let attention = weights.pp("attention");
        let [query, key, value] =
            ["query", "key", "value"].map(|name| Linear::load(&attention.pp("self").pp(name), width, width));
        Ok(Self {
            query_key_value: Linear::stack(&[query?, key?, value?])?,
            mix: Linear::load(&attention.pp("output.dense"), width, width)?,
            mix_norm: Norm::load(&attention.pp("output.LayerNorm"), config)?,
            up: Linear::load(&weights.pp("intermediate.dense"), width, inner)?,
            down: Linear::load(&weights.pp("output.dense"), inner, width)?,
            down_norm: Norm::load(&weights.pp("output.LayerNorm"), config)?,
        })
    }

    fn forward(&self, x: &Tensor, bias: &Tensor, heads: usize) -> Result<Tensor> {
        let mixed = self.mix.forward(&self.attend(x, bias, heads)?)?;
        let x = self.mix_norm.forward(&(x + mixed)?)?;
        let inner = self.up.forward(&x)?.gelu_erf()?;
        self.down_norm.forward(&(&x + self.down.forward(&inner)?)?)
    }

    fn attend(&self, x: &Tensor, bias: &Tensor, heads: usize) -> Result<Tensor> {
        let (sequences, length, width) = x.dims3()?;
        let size = width / heads;
        // [3, sequence, head, position, size]
        let parts = self
            .query_key_value
            .forward(x)?
            .reshape((sequences, length, 3, heads, size))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?;
        let (query, key, value) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
        let scores = (query.matmul(&key.t()?)? * (size as f64).powf(-0.5))?;
        let weights = ops::softmax_last_dim(&scores.broadcast_add(bias)?)?;
        Ok(weights.matmul(&value)?.transpose(1, 2)?.reshape((sequences, length, width))?)
    }
}

/// `x W + b`, over the last axis.
struct Linear {
    /// `[in, out]`
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn load(weights: &VarBuilder<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self {
            weight: weights.get((outputs, inputs), "weight")?.t()?.contiguous()?,
            bias: weights.get(outputs, "bias")?,
        })
    }

    /// Makes one layer that gives the outputs of all `parts` side by side.
    fn stack(parts: &[Self]) -> Result<Self> {
        let weights: Vec<_> = parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<_> = parts.iter().map(|part| &part.bias).collect();
        Ok(Self { weight: Tensor::cat(&weights, 1)?, bias: Tensor::cat(&biases, 0)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (sequences, length, width) = x.dims3()?;
        let y = x.reshape((sequences * length, width))?.matmul(&self.weight)?.broadcast_add(&self.bias)?;
        Ok(y.reshape((sequences, length, ()))?)
    }
}

/// Layer normalisation with its gain and bias.
struct Norm {
    gain: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    fn load(weights: &VarBuilder<'_>, config: &Config) -> Result<Self> {
        Ok(Self {
            gain: weights.get(config.width, "weight")?,
            bias: weights.get(config.width, "bias")?,
            eps: config.eps as f32,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.gain, &self.bias, self.eps)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch;
    use crate::tokens::{Padded, Tokenizer};

    const SENTENCES: [&str; 5] = [
        "A cat sleeps on the warm windowsill.",
        "The kitten is napping by the window in the sun.",
        "Parliament passed the new budget after a long debate.",
        "Lawmakers approved next year's spending plan following hours of argument.",
        "Add two cups of flour and whisk until the batter is smooth.",
    ];

    /// The first six numbers of `BertModel(..., output_hidden_states=True).hidden_states[layer][0, 3]` for
    /// `SENTENCES` as one padded batch, by transformers 5.23.0 with torch 2.15.0 on a CPU.
    const HIDDEN_STATES: [[f32; 6]; 7] = [
        [0.71595, -0.29069, 0.91646, -0.29514, 0.0511, 0.71716],
        [0.42867, -0.22896, 0.65752, -0.41004, 0.00883, 0.96326],
        [0.52567, -0.22733, 0.53397, -0.0454, 0.04949, 0.80999],
        [0.52087, 0.14668, 0.1402, -0.09599, -0.025, 0.90479],
        [0.36922, 0.06144, 0.28957, 0.52857, 0.23983, 1.16249],
        [0.05485, 0.19588, 0.59051, 0.63953, 0.37585, 0.56524],
        [1.29527, -0.3412, -0.5847, 1.08999, 0.54322, 0.52113],
    ];

    /// Cosines of the sentence embeddings (the means over the tokens of the last layer), from the same run.
    const COSINES: [((usize, usize), f32); 4] =
        [((0, 1), 0.6222), ((2, 3), 0.4893), ((0, 2), 0.0683), ((3, 4), 0.0154)];

    fn model_and_batch() -> (Bert, Padded) {
        let dir = fetch::model_dir(None).unwrap();
        let tokenizer = Tokenizer::load(&dir).unwrap();
        let sequences: Vec<_> =
            SENTENCES.iter().map(|text| tokenizer.sequences(text, 126).unwrap().remove(0)).collect();
        let padded = tokenizer.pad(&sequences.iter().collect::<Vec<_>>()).unwrap();
        (Bert::load(&dir, None).unwrap(), padded)
    }

    #[test]
    fn every_layer_agrees_with_transformers() {
        let (model, batch) = model_and_batch();
        let mut layers = 0;
        let mut compare = |layer: usize, residual: &Tensor| {
            assert_eq!(layer, layers);
            layers += 1;
            let row: Vec<f32> = residual.get(0)?.get(3)?.to_vec1()?;
            for (ours, reference) in row.iter().zip(HIDDEN_STATES[layer]) {
                assert!((ours - reference).abs() < 1e-4, "layer {layer}: {ours} is not {reference}");
            }
            Ok(())
        };
        model.forward(&batch.ids, &batch.mask, &mut compare).unwrap();
        assert_eq!(layers, 7);
    }

    #[test]
    fn sentences_that_mean_the_same_are_close() {
        let (model, batch) = model_and_batch();
        let last = model.forward(&batch.ids, &batch.mask, &mut |_, _| Ok(())).unwrap();
        let embed = |sentence: usize| -> Result<Vec<f32>> {
            let mask = batch.mask.get(sentence)?.unsqueeze(1)?;
            Ok(last.get(sentence)?.broadcast_mul(&mask)?.sum(0)?.to_vec1()?)
        };
        let embeddings: Vec<_> = (0..5).map(|sentence| embed(sentence).unwrap()).collect();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let cosine = |(a, b): (usize, usize)| {
            let (a, b) = (&embeddings[a], &embeddings[b]);
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        for (pair, reference) in COSINES {
            assert!((cosine(pair) - reference).abs() < 1e-3, "{pair:?}: {} is not {reference}", cosine(pair));
        }
        for other in 2..5 {
            assert!(cosine((0, 1)) > cosine((0, other)) + 0.3);
        }
    }

    #[test]
    fn a_layer_the_model_lacks_is_refused() {
        let dir = fetch::model_dir(None).unwrap();
        let Err(error) = Bert::load(&dir, Some(7)) else { panic!("loaded layer 7 of 6") };
        assert!(error.to_string().contains("layer 7 does not exist"), "{error}");
    }
}
