//! Tokens to vectors, and vectors to logits.

use burn::tensor::{Int, Tensor};
use firebrick_ops::{Projection, Then, Weight, gather_rows_of, project};

use super::Norm;
use crate::LoadError;
use crate::loader::Loader;

/// A table with one row per token (or per position).
#[derive(Clone, Debug)]
pub struct TokenEmbedding {
    table: Weight,
}

impl TokenEmbedding {
    pub(crate) fn load(loader: &mut Loader, name: &str, rows: usize) -> Result<Self, LoadError> {
        let hidden = loader.config().hidden_size;
        Ok(Self { table: loader.weight(&[(name, rows)], hidden)? })
    }

    /// `[T]` ids to `[T, hidden]`.
    pub fn forward(&self, ids: &Tensor<1, Int>) -> Tensor<2> {
        gather_rows_of(&self.table, ids)
    }
}

/// The last norm and the last projection, from the residual stream to the vocabulary.
#[derive(Debug)]
pub struct LmHead {
    norm: Norm,
    weight: Weight,
    softcap: Option<f32>,
}

impl LmHead {
    /// `lm_head.weight`, or the embedding itself where the checkpoint ties them, behind the last `norm`.
    pub(crate) fn load(loader: &mut Loader, norm: Norm, embedding: &TokenEmbedding) -> Result<Self, LoadError> {
        let config = loader.config();
        let tied = config.tie_word_embeddings || !loader.contains("lm_head.weight");
        let weight = if tied {
            embedding.table.clone()
        } else {
            loader.weight(&[("lm_head.weight", config.vocab_size)], config.hidden_size)?
        };
        Ok(Self { norm, weight, softcap: config.final_logit_softcap })
    }

    /// Logits `[rows, vocab]` of rows of the residual stream, which are normalised first.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let projection = Projection { norm: Some(self.norm.of_rows()), weight: &self.weight, bias: None };
        let logits = project(hidden, projection, Then::Keep);
        match self.softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// The normalised rows: what the projection is applied to.
    pub fn states(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.norm.forward(hidden)
    }
}
