//! What a model's steps look like to the kernels, from its configuration alone: no weights, no device.

use firebrick_checkpoint::{Architecture, Dtype, FP8_MULTIPLE, KvDtype, ModelConfig};
use firebrick_ops::e4m3::E4M3;
use firebrick_ops::{NormKind, ProjectionShape, QkvOptions, StepKernels, Use};

use crate::kv_cache::head_layout;
use crate::layers::activation_of;
use crate::loader::burn_dtype;

/// How a model is run, as far as kernels depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Weights and activations.
    pub dtype: Dtype,
    /// Keys and values.
    pub kv_dtype: KvDtype,
    /// Tokens per KV block.
    pub block_size: usize,
    /// Every row has the same bits in every batch.
    pub deterministic: bool,
    /// Matrices of linear layers may be in FP8.
    pub fp8_weights: bool,
}

/// What decides which kernels the model's steps may take on CUDA.
pub fn step_kernels(config: &ModelConfig, options: KernelOptions) -> StepKernels {
    let has_layer_norms = matches!(config.architecture, Architecture::Opt | Architecture::Gpt2);
    let norm = Some(if has_layer_norms { NormKind::Layer } else { NormKind::Rms });
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (query, kv) = (config.query_size(), config.kv_size());
    let kind = activation_of(config.activation);
    let (up, then) = if config.has_gated_mlp() { (2 * inner, Use::Gate(kind)) } else { (inner, Use::Activate(kind)) };
    let shape = |inputs: usize, outputs: usize, norm, then| ProjectionShape {
        inputs,
        outputs,
        norm,
        then,
        may_be_fp8: options.fp8_weights && [inputs, outputs].iter().all(|size| size.is_multiple_of(FP8_MULTIPLE)),
    };
    let logits = ProjectionShape { may_be_fp8: false, ..shape(hidden, config.vocab_size, norm, Use::Keep) };
    let rotary_dim = config.rope.as_ref().map_or(0, |rope| rope.rotary_dim / 2 * 2);
    StepKernels {
        dtype: burn_dtype(options.dtype),
        cache: match options.kv_dtype {
            KvDtype::Float(_) => burn_dtype(options.dtype),
            KvDtype::E4m3 => E4M3,
        },
        block_size: options.block_size,
        qkv: QkvOptions { heads: head_layout(config), rotary_dim, norm_eps: config.qk_norm.then_some(config.norm_eps) },
        is_capped: config.attention_softcap.is_some(),
        projections: vec![
            shape(hidden, query + 2 * kv, norm, Use::Heads),
            shape(query, hidden, None, Use::Keep),
            shape(hidden, up, norm, then),
            shape(inner, hidden, None, Use::Keep),
            logits,
        ],
        is_batch_invariant: options.deterministic,
    }
}

/// What a model computes with Burn's own kernels, which are compiled where they run, on the way from tokens to logits;
/// `None` where all of it is done by ours.
pub fn burns_part(config: &ModelConfig) -> Option<&'static str> {
    match config.architecture {
        Architecture::Llama
        | Architecture::Mistral
        | Architecture::Qwen2
        | Architecture::Qwen3
        | Architecture::Phi3 => config.final_logit_softcap.map(|_| "the cap of its logits"),
        Architecture::Gemma3 => Some("the scale of its embeddings"),
        Architecture::Opt | Architecture::Gpt2 => Some("the sum of its embeddings"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebrick_checkpoint::Checkpoint;
    use std::path::Path;

    fn steps(model: &str) -> (StepKernels, Option<&'static str>) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(model);
        let checkpoint = Checkpoint::open(&folder).expect("the fixture opens");
        let options = KernelOptions {
            dtype: Dtype::BF16,
            kv_dtype: Dtype::BF16.into(),
            block_size: 16,
            deterministic: false,
            fp8_weights: true,
        };
        (step_kernels(checkpoint.config(), options), burns_part(checkpoint.config()))
    }

    #[test]
    fn a_model_of_llamas_shape_takes_our_kernels_only() {
        let (steps, burns) = steps("llama-tied");
        assert_eq!(burns, None);
        assert_eq!(steps.projections.iter().filter(|projection| projection.norm.is_some()).count(), 3);
        let fp8: Vec<bool> = steps.projections.iter().map(|projection| projection.may_be_fp8).collect();
        assert_eq!(fp8, [true, true, true, true, false], "all but the output projection");
        assert!(steps.projections.iter().all(|projection| projection.norm != Some(NormKind::Layer)));
        assert!(matches!(steps.projections[2].then, Use::Gate(_)));
    }

    #[test]
    fn a_model_with_learned_positions_has_layer_norms_and_a_sum_of_burns() {
        let (steps, burns) = steps("opt");
        assert_eq!((burns, steps.qkv.rotary_dim), (Some("the sum of its embeddings"), 0));
        assert_eq!(steps.projections[0].norm, Some(NormKind::Layer));
        assert!(matches!(steps.projections[2].then, Use::Activate(_)));
    }
}
