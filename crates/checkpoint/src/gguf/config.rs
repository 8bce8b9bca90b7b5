//! The configuration from GGUF metadata, and from the tensors where metadata is silent.

use super::layout::Stored;
use super::metadata::Metadata;
use super::names::ROPE_FACTORS;
use crate::blocks;
use crate::config::{Activation, Architecture, LayerKind, ModelConfig, RopeConfig, RopeScaling, limits};
use crate::dtype::{Dtype, StoredDtype};
use crate::error::Fault;
use std::collections::BTreeMap;

/// Metadata under the architecture's prefix, the tensor table, and the file itself.
struct Source<'a> {
    architecture: Architecture,
    prefix: &'a str,
    metadata: &'a Metadata<'a>,
    tensors: &'a BTreeMap<String, Stored>,
    file: &'a [u8],
}

pub(super) fn read(
    architecture: Architecture,
    metadata: &Metadata,
    tensors: &BTreeMap<String, Stored>,
    file: &[u8],
) -> Result<ModelConfig, Fault> {
    let prefix = metadata.text_required("general.architecture")?;
    let source = Source { architecture, prefix, metadata, tensors, file };
    let config = source.config()?;
    limits::check(&config)?;
    Ok(config)
}

impl Source<'_> {
    fn config(&self) -> Result<ModelConfig, Fault> {
        let (architecture, metadata) = (self.architecture, self.metadata);
        self.refuse_experts()?;
        let gemma = architecture == Architecture::Gemma3;
        let learned = architecture == Architecture::Gpt2;
        let hidden_size = metadata.usize_required(&self.key("embedding_length"))?;
        let num_layers = metadata.usize_required(&self.key("block_count"))?;
        limits::check_layers(num_layers)?;
        let num_heads = self.usize_of_layers("attention.head_count")?;
        let num_kv_heads = metadata.usize_of_layers(&self.key("attention.head_count_kv"))?.unwrap_or(num_heads);
        let head_dim = self.head_dim(hidden_size, num_heads)?;
        let sliding_window = if gemma { metadata.usize(&self.key("attention.sliding_window"))? } else { None };
        let norm_key = if learned { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        Ok(ModelConfig {
            architecture,
            vocab_size: self.vocab_size()?,
            hidden_size,
            intermediate_size: self.usize_of_layers("feed_forward_length")?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            max_position_embeddings: metadata.usize_required(&self.key("context_length"))?,
            norm_eps: metadata.f32_required(&self.key(norm_key))?,
            activation: if gemma || learned { Activation::GeluTanh } else { Activation::Silu },
            tie_word_embeddings: !self.tensors.contains_key("output.weight"),
            attention_bias: learned || self.has("blk.0.attn_q.bias"),
            attention_output_bias: learned || self.has("blk.0.attn_output.bias"),
            mlp_bias: learned || self.has("blk.0.ffn_down.bias"),
            rope: if learned { None } else { Some(self.rope(head_dim)?) },
            local_rope_theta: if gemma { Some(self.f32("rope.freq_base_swa", 10_000.0)?) } else { None },
            position_offset: learned.then_some(0),
            qk_norm: gemma || architecture == Architecture::Qwen3,
            sliding_window,
            layer_kinds: self.layer_kinds(num_layers, sliding_window)?,
            attention_scale: self.attention_scale(hidden_size, num_layers, num_heads, head_dim),
            attention_softcap: if gemma { metadata.f32(&self.key("attn_logit_softcapping"))? } else { None },
            final_logit_softcap: if gemma { metadata.f32(&self.key("final_logit_softcapping"))? } else { None },
            embedding_scale: if gemma { (hidden_size as f32).sqrt() } else { 1.0 },
            norm_weight_offset: if gemma { 1.0 } else { 0.0 },
            layer_norm_before: true,
            dtype: self.dtype(),
            quantisation: None,
            bos_token_id: metadata.token_id("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: self.eos_token_ids()?,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    fn f32(&self, name: &str, default: f32) -> Result<f32, Fault> {
        Ok(self.metadata.f32(&self.key(name))?.unwrap_or(default))
    }

    fn usize_of_layers(&self, name: &str) -> Result<usize, Fault> {
        let key = self.key(name);
        self.metadata.usize_of_layers(&key)?.ok_or_else(|| Fault::corrupt(key, "is missing"))
    }

    fn refuse_experts(&self) -> Result<(), Fault> {
        let key = self.key("expert_count");
        match self.metadata.usize(&key)? {
            None | Some(0) => Ok(()),
            Some(experts) => {
                Err(Fault::unsupported(key, format!("mixtures of experts ({experts} here) are not supported")))
            }
        }
    }

    fn vocab_size(&self) -> Result<usize, Fault> {
        let embedding = self.tensors.get("token_embd.weight").filter(|embedding| embedding.shape.len() == 2);
        Ok(embedding.ok_or_else(|| Fault::corrupt("token_embd.weight", "is missing or not a matrix"))?.shape[0])
    }

    fn head_dim(&self, hidden_size: usize, num_heads: usize) -> Result<usize, Fault> {
        let key_length = self.metadata.usize(&self.key("attention.key_length"))?;
        let value_length = self.metadata.usize(&self.key("attention.value_length"))?;
        if value_length.is_some() && value_length != key_length {
            let problem = "differing from attention.key_length is not supported";
            return Err(Fault::unsupported(self.key("attention.value_length"), problem));
        }
        Ok(key_length.or(hidden_size.checked_div(num_heads)).unwrap_or(0))
    }

    fn rope(&self, head_dim: usize) -> Result<RopeConfig, Fault> {
        let theta = self.f32("rope.freq_base", 10_000.0)?;
        let rotary_dim = self.metadata.usize(&self.key("rope.dimension_count"))?.unwrap_or(head_dim);
        let key = self.key("rope.scaling.type");
        let scaling = match self.metadata.text(&key)? {
            None | Some("none") => RopeScaling::None,
            Some("linear") => {
                RopeScaling::Linear { factor: self.metadata.f32_required(&self.key("rope.scaling.factor"))? }
            }
            Some(other) => {
                let problem = format!("{} is not supported; supported: none, linear", crate::error::printable(other));
                return Err(Fault::unsupported(key, problem));
            }
        };
        let plain = RopeConfig { theta, scaling, rotary_dim };
        match self.tensors.get(ROPE_FACTORS) {
            Some(factors) => self.llama3(plain, factors),
            None => Ok(plain),
        }
    }

    /// GGUF replaces Llama 3's scaling settings by the divisors they lead to. Every Llama 3 has the same settings but
    /// for the factor, which is the largest divisor; divisors that these settings do not explain are refused.
    fn llama3(&self, plain: RopeConfig, factors: &Stored) -> Result<RopeConfig, Fault> {
        let refused =
            || Fault::unsupported(ROPE_FACTORS, "these rotary factors are not Llama 3's, others are not supported");
        if factors.dtype != StoredDtype::F32
            || factors.shape != [plain.rotary_dim / 2]
            || plain.scaling != RopeScaling::None
        {
            return Err(refused());
        }
        let mut divisors = vec![0.0; plain.rotary_dim / 2];
        blocks::decode(StoredDtype::F32, &self.file[factors.range.clone()], &mut divisors);
        let factor = divisors.iter().copied().fold(1.0, f32::max);
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        for (pair, divisor) in divisors.iter().enumerate() {
            let exponent = -2.0 * pair as f64 / plain.rotary_dim as f64;
            let expected = scaling.divisor(pair, f64::from(plain.theta).powf(exponent), 0);
            // Written so that NaN is refused too.
            let explained = (f64::from(*divisor) / expected - 1.0).abs() < 1e-3;
            if !explained {
                return Err(refused());
            }
        }
        Ok(RopeConfig { scaling, ..plain })
    }

    fn layer_kinds(&self, num_layers: usize, sliding_window: Option<usize>) -> Result<Vec<LayerKind>, Fault> {
        const PERIOD: usize = 6;
        let kind = |slides| if slides { LayerKind::Sliding } else { LayerKind::Full };
        if sliding_window.is_none() {
            return Ok(vec![LayerKind::Full; num_layers]);
        }
        let key = self.key("attention.sliding_window_pattern");
        if self.metadata.is_array(&key) {
            let slides = self.metadata.bools(&key)?;
            if slides.len() != num_layers {
                let problem = format!("has {} entries for {num_layers} layers", slides.len());
                return Err(Fault::corrupt(key, problem));
            }
            return Ok(slides.into_iter().map(kind).collect());
        }
        let period = self.metadata.usize(&key)?.unwrap_or(PERIOD);
        if period == 0 {
            return Err(Fault::corrupt(key, "is 0"));
        }
        Ok((0..num_layers).map(|layer| kind(!(layer + 1).is_multiple_of(period))).collect())
    }

    /// GGUF has no `query_pre_attn_scalar`. It is the head size in every Gemma 3 but the largest (62 layers), where it
    /// is the hidden size over the heads.
    fn attention_scale(&self, hidden_size: usize, num_layers: usize, num_heads: usize, head_dim: usize) -> f32 {
        const LARGEST_GEMMA3_LAYERS: usize = 62;
        let largest = self.architecture == Architecture::Gemma3 && num_layers == LARGEST_GEMMA3_LAYERS;
        let scalar = if largest { hidden_size as f32 / num_heads as f32 } else { head_dim as f32 };
        1.0 / scalar.sqrt()
    }

    fn dtype(&self) -> Dtype {
        let mut bytes = BTreeMap::<_, usize>::new();
        for stored in self.tensors.values() {
            *bytes.entry(stored.dtype.ggml_number()).or_default() += stored.range.len();
        }
        let most =
            bytes.into_iter().max_by_key(|(_, bytes)| *bytes).and_then(|(number, _)| StoredDtype::from_ggml(number));
        match most.and_then(StoredDtype::plain) {
            Some(dtype) => dtype,
            None if self.architecture == Architecture::Gemma3 => Dtype::BF16,
            None => Dtype::F16,
        }
    }

    /// The end-of-sequence token, and the end-of-turn token of chat models where it is another. Files often leave the
    /// latter out; then it is a well-known marker that the chat template writes.
    fn eos_token_ids(&self) -> Result<Vec<u32>, Fault> {
        const END_OF_TURN: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];
        let mut ids = Vec::from_iter(self.metadata.token_id("tokenizer.ggml.eos_token_id")?);
        let end_of_turn = match self.metadata.token_id("tokenizer.ggml.eot_token_id")? {
            Some(id) => Some(id),
            None => {
                let template = self.metadata.text("tokenizer.chat_template")?.unwrap_or_default();
                let tokens = self.metadata.texts("tokenizer.ggml.tokens")?;
                let marker = END_OF_TURN.into_iter().find(|marker| template.contains(marker));
                let id = marker.and_then(|marker| tokens.iter().position(|token| token == marker));
                id.map(|id| id as u32)
            }
        };
        ids.extend(end_of_turn.filter(|id| !ids.contains(id)));
        Ok(ids)
    }
}
