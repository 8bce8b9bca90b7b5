//! Weights of linear layers in FP8 (E4M3), a scale for each row: those that files hold so, and what they take in memory.
//!
//! Devices multiply matrices whose sizes are whole multiples of [`FP8_MULTIPLE`]; others are widened.

use bytes::Bytes;

use crate::checkpoint::num_elements;
use crate::{Checkpoint, CheckpointError, Dtype, ModelConfig};

/// Rows and columns of a matrix in FP8 are multiples of it.
pub const FP8_MULTIPLE: usize = 16;

/// A matrix of codes: a number is its code's times the scale of the row.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8Values {
    /// Row by row, the file's own bytes.
    pub codes: Bytes,
    /// One for each row.
    pub scales: Vec<f32>,
}

impl Checkpoint {
    /// Reads a matrix that must have this shape as it is, if the file holds it in FP8 with one scale for each row or for
    /// all.
    pub fn read_fp8(&self, name: &str, shape: &[usize]) -> Result<Option<Fp8Values>, CheckpointError> {
        if self.dummy {
            return Ok(None);
        }
        self.check_shape(name, shape)?;
        Ok(self.quantised.get(name).and_then(|weight| weight.fp8(&self.files)))
    }

    /// Bytes of the tensors that the model holds in memory, in `dtype` but for matrices that the file has in FP8, which stay
    /// so; `None` where there is none of those.
    pub fn stored_fp8_bytes(&self, dtype: Dtype) -> Option<u64> {
        let stays = |shape: [usize; 2]| shape.iter().all(|size| size.is_multiple_of(FP8_MULTIPLE));
        let weights = || self.quantised.values().map(|weight| (weight, weight.is_fp8_by_rows() && stays(weight.shape)));
        let bytes = weights().map(|(weight, stays)| match stays {
            true => matrix_bytes(weight.shape),
            false => weight.num_elements() * dtype.size() as u64,
        });
        let plain = self.kept_tensors().map(|entry| num_elements(entry) * dtype.size() as u64);
        weights().any(|(_, stays)| stays).then(|| bytes.chain(plain).sum())
    }

    /// Bytes of the tensors that the model holds in memory, in `dtype` but for the matrices of linear layers, which are made
    /// FP8 when they are loaded.
    pub fn made_fp8_bytes(&self, dtype: Dtype) -> u64 {
        let saved = |shape: &[usize; 2]| {
            let wide = (shape[0] * shape[1] * dtype.size()) as u64;
            let is_made = shape.iter().all(|size| size.is_multiple_of(FP8_MULTIPLE));
            if is_made { wide.saturating_sub(matrix_bytes(*shape)) } else { 0 }
        };
        let of_layer: u64 = linear_shapes(&self.config).iter().map(saved).sum();
        let all = self.num_parameters() * dtype.size() as u64;
        all.saturating_sub(self.config.num_layers as u64 * of_layer)
    }
}

/// A byte for each number and a scale for each row.
fn matrix_bytes([rows, columns]: [usize; 2]) -> u64 {
    (rows * (columns + size_of::<f32>())) as u64
}

/// `[out, in]` of a layer's matrices.
fn linear_shapes(config: &ModelConfig) -> Vec<[usize; 2]> {
    let ModelConfig { hidden_size, intermediate_size, .. } = *config;
    let (query, kv) = (config.query_size(), config.kv_size());
    let inputs = if config.has_gated_mlp() { 2 } else { 1 };
    let mut shapes = vec![[query, hidden_size], [kv, hidden_size], [kv, hidden_size], [hidden_size, query]];
    shapes.extend(vec![[intermediate_size, hidden_size]; inputs]);
    shapes.push([hidden_size, intermediate_size]);
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_layers_made_fp8_take_a_byte_for_each_number_and_a_scale_for_each_row() {
        let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "intermediate_size": 136, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 1000, "torch_dtype": "bfloat16", "tie_word_embeddings": true}"#;
        let checkpoint = Checkpoint::dummy(config).expect("a configuration");
        // Queries and output of 64 rows, keys and values of 32; 136 is no multiple of 16, so that the MLP stays as it is.
        let layer = (64 + 32 + 32 + 64) * (64 + 4) + 2 * 3 * 64 * 136;
        assert_eq!(checkpoint.made_fp8_bytes(Dtype::BF16), 2 * 64_000 + 2 * layer);
        assert_eq!(checkpoint.stored_fp8_bytes(Dtype::BF16), None);
    }
}
