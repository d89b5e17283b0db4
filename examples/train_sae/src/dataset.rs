//! Tokens for the training, and tokens from other documents to judge the result.

use anyhow::{Result, ensure};
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom as _;

use crate::text::Corpus;
use crate::tokens::{Sequence, Tokenizer};

/// How many rows judge the SAEs.
const HELD_OUT: usize = 4096;

/// The tokens of a run.
pub(crate) struct Dataset {
    /// Sequences of documents that are not in `shares`.
    pub(crate) held_out: Vec<Sequence>,
    /// Sequences for each capture thread.
    pub(crate) shares: Vec<Vec<Sequence>>,
    /// The most tokens of a sequence.
    pub(crate) length: usize,
}

impl Dataset {
    /// Shuffles the documents and holds some out. Gives the sequences of the others to `shares` threads: as many as `rows` rows need, or
    /// all sequences.
    pub(crate) fn new(
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        length: usize,
        rows: usize,
        shares: usize,
        seed: u64,
    ) -> Result<Self> {
        let mut documents: Vec<&String> = corpus.documents.iter().collect();
        documents.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
        let mut dataset = Self { held_out: Vec::new(), shares: vec![Vec::new(); shares], length };
        let (mut held_out, mut training, mut next) = (0, 0, 0);
        for (index, document) in documents.iter().enumerate() {
            let sequences = tokenizer.sequences(document, length)?;
            let tokens: usize = sequences.iter().map(Vec::len).sum();
            // At most an eighth of a short text is held out.
            if held_out < HELD_OUT && index <= documents.len() / 8 {
                held_out += tokens;
                dataset.held_out.extend(sequences);
            } else if training < rows {
                training += tokens;
                for sequence in sequences {
                    dataset.shares[next % shares].push(sequence);
                    next += 1;
                }
            }
        }
        ensure!(
            held_out > 0 && dataset.shares.iter().all(|share| !share.is_empty()),
            "the text is too short: {} documents with {} tokens do not make {shares} shares of training text and some to \
             hold out; pass more of it with --text",
            documents.len(),
            held_out + training
        );
        Ok(dataset)
    }

    /// Returns the number of tokens to train on.
    pub(crate) fn training_rows(&self) -> usize {
        count(self.shares.iter().flatten())
    }

    /// Returns the number of tokens to judge the result on.
    pub(crate) fn held_out_rows(&self) -> usize {
        count(&self.held_out).min(HELD_OUT)
    }
}

fn count<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> usize {
    sequences.into_iter().map(Vec::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch;

    fn corpus(documents: usize) -> Corpus {
        let documents =
            (0..documents).map(|n| format!("Document {n} says {}.", "something new ".repeat(100))).collect();
        Corpus { documents, origin: String::new() }
    }

    #[test]
    fn threads_share_the_text_and_held_out_documents_are_in_no_share() {
        let tokenizer = Tokenizer::load(&fetch::model_dir(None).unwrap()).unwrap();
        let dataset = Dataset::new(&corpus(80), &tokenizer, 126, 5_000, 2, 1).unwrap();
        assert!(dataset.training_rows() >= 5_000 && dataset.training_rows() < 5_300, "{}", dataset.training_rows());
        assert!(dataset.held_out_rows() > 1_000);
        assert!(dataset.shares[0].len().abs_diff(dataset.shares[1].len()) <= 1);
        // Only the start of a document differs from the other documents.
        let starts: Vec<_> = dataset.shares.iter().flatten().filter(|sequence| sequence.len() == 126).collect();
        assert!(dataset.held_out.iter().filter(|s| s.len() == 126).all(|sequence| !starts.contains(&sequence)));
    }

    #[test]
    fn a_text_that_is_too_short_is_refused() {
        let tokenizer = Tokenizer::load(&fetch::model_dir(None).unwrap()).unwrap();
        let Err(error) = Dataset::new(&corpus(1), &tokenizer, 126, 5_000, 2, 1) else {
            panic!("one document is enough")
        };
        assert!(error.to_string().contains("the text is too short"), "{error}");
    }
}
