//! Tokens to vectors, and vectors to logits.

use burn::tensor::{Int, Tensor};
use firebrick_ops::{Projection, Then, Weight, gather_rows, gather_rows_of, project};

use super::Norm;
use crate::loader::Loader;
use crate::{ForwardInput, LoadError};

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

/// The last projection, from the residual stream to the vocabulary.
#[derive(Debug)]
pub struct LmHead {
    weight: Weight,
    softcap: Option<f32>,
}

impl LmHead {
    /// `lm_head.weight`, or the embedding itself where the checkpoint ties them.
    pub(crate) fn load(loader: &mut Loader, embedding: &TokenEmbedding) -> Result<Self, LoadError> {
        let config = loader.config();
        let tied = config.tie_word_embeddings || !loader.contains("lm_head.weight");
        let weight = if tied {
            embedding.table.clone()
        } else {
            loader.weight(&[("lm_head.weight", config.vocab_size)], config.hidden_size)?
        };
        Ok(Self { weight, softcap: config.final_logit_softcap })
    }

    /// Logits `[logit_rows, vocab]` of the tokens that `input` names, whose rows of `hidden` are normalised first.
    pub fn forward(&self, hidden: &Tensor<2>, norm: &Norm, input: &ForwardInput) -> Tensor<2> {
        let projection = Projection { norm: Some(norm.of_rows()), weight: &self.weight, bias: None };
        let logits = project(gather_rows(hidden, &input.logit_rows), projection, Then::Keep);
        match self.softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }
}
