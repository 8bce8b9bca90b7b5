//! How many numbers a model holds, from its configuration alone.

use super::{Architecture, ModelConfig};

impl ModelConfig {
    /// Weights of the whole model; a tied output projection counts once.
    pub fn num_parameters(&self) -> u64 {
        let (vocab, hidden) = (self.vocab_size as u64, self.hidden_size as u64);
        let outputs = if self.tie_word_embeddings { 0 } else { vocab * hidden };
        let positions =
            self.position_offset.map_or(0, |offset| (self.max_position_embeddings + offset) as u64 * hidden);
        let final_norm = if self.layer_norm_before { self.norm_parameters() } else { 0 };
        vocab * hidden + outputs + positions + final_norm + self.num_layers as u64 * self.layer_parameters()
    }

    fn layer_parameters(&self) -> u64 {
        let (hidden, inner) = (self.hidden_size as u64, self.intermediate_size as u64);
        let (query, kv) = (self.query_size() as u64, self.kv_size() as u64);
        let when = |bias: bool, count: u64| if bias { count } else { 0 };
        let attention = hidden * (2 * query + 2 * kv)
            + when(self.attention_bias, query + 2 * kv)
            + when(self.attention_output_bias, hidden);
        let inputs = if self.has_gated_mlp() { 2 } else { 1 };
        let mlp = hidden * inner * (inputs + 1) + when(self.mlp_bias, inputs * inner + hidden);
        let norms = if self.architecture == Architecture::Gemma3 { 4 } else { 2 };
        attention + mlp + norms * self.norm_parameters() + when(self.qk_norm, 2 * self.head_dim as u64)
    }

    /// The families with learned positions have norms with biases.
    fn norm_parameters(&self) -> u64 {
        let vectors = if self.position_offset.is_some() { 2 } else { 1 };
        vectors * self.hidden_size as u64
    }
}
