//! Random weights of the right shapes: speed and memory can be measured without a model's files.

use std::sync::OnceLock;
use std::thread::available_parallelism;

use half::{bf16, f16};

use crate::config::from_json;
use crate::folder;
use crate::tensor::TensorValues;
use crate::{Checkpoint, CheckpointError, Dtype, GenerationConfig, ModelConfig, SpecialTokens, TokenizerSource};

/// Numbers that all tensors are cut from; odd, so that the rows of a matrix are not copies of each other.
const POOL: usize = (1 << 20) - 3;
/// Bytes of a tensor from which on several threads make it.
const PARALLEL: usize = 16 << 20;
/// Weights are even in ± this, about as far from zero as trained ones.
const LARGEST: f32 = 0.035;

impl Checkpoint {
    /// A model of random weights in the shapes of a config.json, given as text. It has no tokenizer.
    pub fn dummy(config: &str) -> Result<Self, CheckpointError> {
        let config = from_json(config, Dtype::F32).map_err(|fault| fault.in_file("config.json"))?;
        Ok(Self {
            generation_config: GenerationConfig {
                eos_token_ids: config.eos_token_ids.clone(),
                ..GenerationConfig::default()
            },
            config,
            dummy: true,
            files: Vec::new(),
            tensors: Default::default(),
            quantised: Default::default(),
            unreadable: Default::default(),
            tokenizer: TokenizerSource::Json("tokenizer.json".into()),
            chat_template: None,
            special_tokens: SpecialTokens::default(),
        })
    }

    /// A folder with config.json, and a tokenizer if there is one; its weights, if any, are not read.
    pub fn open_with_dummy_weights(folder: &std::path::Path) -> Result<Self, CheckpointError> {
        folder::open_dummy(folder)
    }
}

/// A tensor that every reading gives the same values: ones for norms, else random numbers that its name decides.
pub(crate) fn read(name: &str, shape: &[usize], dtype: Dtype) -> TensorValues {
    let count = shape.iter().product();
    let is_norm = name.contains("norm") || name.contains(".ln_");
    let bytes = if is_norm { encode(1.0, dtype).repeat(count) } else { cut(pool(dtype), name, count * dtype.size()) };
    TensorValues { shape: shape.to_vec(), dtype, bytes: bytes.into() }
}

/// `length` bytes of the pool, from a place that the name decides, round and round. Large tensors are put together by
/// several threads: what takes the time is that the system clears the memory first.
fn cut(pool: &[u8], name: &str, length: usize) -> Vec<u8> {
    let hash = name.bytes().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let start = hash % POOL * (pool.len() / POOL);
    let threads = if length < PARALLEL { 1 } else { available_parallelism().map_or(1, |cores| cores.get().min(8)) };
    let mut bytes = vec![0; length];
    let each = length.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut pieces = bytes.chunks_mut(each).enumerate();
        let own = pieces.next();
        for (index, piece) in pieces {
            scope.spawn(move || fill(piece, pool, start + index * each));
        }
        if let Some((_, piece)) = own {
            fill(piece, pool, start);
        }
    });
    bytes
}

/// What the pool repeated for ever has from `start` on.
fn fill(mut bytes: &mut [u8], pool: &[u8], start: usize) {
    let mut start = start % pool.len();
    while !bytes.is_empty() {
        let count = bytes.len().min(pool.len() - start);
        bytes[..count].copy_from_slice(&pool[start..start + count]);
        bytes = &mut bytes[count..];
        start = 0;
    }
}

fn pool(dtype: Dtype) -> &'static [u8] {
    static POOLS: [OnceLock<Vec<u8>>; 3] = [const { OnceLock::new() }; 3];
    let index = match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 2,
    };
    POOLS[index].get_or_init(|| {
        let mut state = 0x2545_f491_u32;
        let mut next = || {
            // Xorshift (Marsaglia, 2003).
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..POOL).flat_map(|_| encode(next() * LARGEST, dtype)).collect()
    })
}

fn encode(value: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

/// Weights of a configuration, without norms and biases, which are less than a thousandth of them.
pub(crate) fn num_parameters(config: &ModelConfig) -> u64 {
    let ModelConfig { hidden_size, intermediate_size, vocab_size, num_layers, .. } = *config;
    let attention = 2 * hidden_size * (config.query_size() + config.kv_size());
    let mlp = if config.has_gated_mlp() { 3 } else { 2 } * hidden_size * intermediate_size;
    let tables = if config.tie_word_embeddings { 1 } else { 2 } * vocab_size * hidden_size;
    let positions = config.position_offset.map_or(0, |offset| (config.max_position_embeddings + offset) * hidden_size);
    (tables + positions + num_layers * (attention + mlp)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 1000, "torch_dtype": "bfloat16", "tie_word_embeddings": true}"#;

    #[test]
    fn weights_have_the_shape_asked_for_and_are_the_same_each_time() {
        let checkpoint = Checkpoint::dummy(CONFIG).expect("a configuration");
        let read = |name| checkpoint.read_shaped(name, &[128, 64], Dtype::BF16).expect("any name and shape");
        assert_eq!(read("a.weight").bytes.len(), 128 * 64 * 2);
        assert_eq!(read("a.weight"), read("a.weight"));
        assert_ne!(read("a.weight"), read("b.weight"));
        assert!(!checkpoint.contains("lm_head.weight"), "the output projection is tied");
    }

    #[test]
    fn parameters_are_counted_from_the_configuration() {
        let checkpoint = Checkpoint::dummy(CONFIG).expect("a configuration");
        let layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128;
        assert_eq!(checkpoint.num_parameters(), 64 * 1000 + 2 * layer as u64);
    }

    #[test]
    fn large_weights_are_the_pool_round_and_round() {
        let pool = pool(Dtype::F16);
        let length = PARALLEL + 10;
        let (cut, mut plain) = (cut(pool, "x", length), vec![0; length]);
        fill(&mut plain, pool, usize::from(b'x') * 2);
        assert!(cut == plain && cut[..pool.len()] == cut[pool.len()..2 * pool.len()]);
    }
}
