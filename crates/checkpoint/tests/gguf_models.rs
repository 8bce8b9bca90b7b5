//! What GGUF metadata becomes, on small files.

mod support;

use firebrick_checkpoint::{
    Activation, Architecture, Checkpoint, Dtype, LayerKind, RopeScaling, TensorValues, TokenizerSource,
};
use support::GgufBuilder;

fn open(builder: GgufBuilder) -> Checkpoint {
    Checkpoint::from_gguf_bytes("model.gguf", builder.build()).unwrap_or_else(|error| panic!("{error}"))
}

fn f32s(values: &TensorValues) -> Vec<f32> {
    values.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn an_untied_qwen2_keeps_its_biases_and_row_order() {
    let checkpoint = open(
        GgufBuilder::new("qwen2")
            .tensor("token_embd.weight", &[4, 32])
            .tensor("output.weight", &[4, 32])
            .tensor("blk.0.attn_q.weight", &[32, 32])
            .tensor("blk.0.attn_q.bias", &[32]),
    );
    let config = checkpoint.config();
    assert_eq!((config.architecture, config.dtype), (Architecture::Qwen2, Dtype::F32));
    assert!(config.attention_bias && !config.attention_output_bias && !config.tie_word_embeddings);
    let query = checkpoint.read("model.layers.0.self_attn.q_proj.weight", Dtype::F32).unwrap();
    assert_eq!(f32s(&query)[32], 32.0);
    assert!(checkpoint.contains("lm_head.weight") && checkpoint.contains("model.layers.0.self_attn.q_proj.bias"));
}

#[test]
fn gpt2_projections_are_turned_to_in_by_out() {
    let checkpoint = open(
        GgufBuilder::new("gpt2")
            .tensor("token_embd.weight", &[4, 32])
            .tensor("position_embd.weight", &[64, 32])
            .tensor("blk.0.attn_qkv.weight", &[96, 32])
            .tensor("blk.0.attn_qkv.bias", &[96]),
    );
    let config = checkpoint.config();
    assert_eq!((config.position_offset, config.activation, &config.rope), (Some(0), Activation::GeluTanh, &None));
    assert!(config.attention_bias && config.attention_output_bias && config.mlp_bias);
    let projection = checkpoint.read("transformer.h.0.attn.c_attn.weight", Dtype::F32).unwrap();
    assert_eq!(projection.shape, [32, 96]);
    assert_eq!(f32s(&projection)[1], 32.0);
    assert_eq!(checkpoint.shape("transformer.h.0.attn.c_attn.bias"), Some(&[96][..]));
}

#[test]
fn gemma3_slides_but_for_every_sixth_layer_and_its_norms_lose_their_one() {
    let mut builder = GgufBuilder::new("gemma3").tensor("token_embd.weight", &[4, 32]);
    builder = builder.u32("gemma3.attention.sliding_window", 16).tensor("blk.0.post_ffw_norm.weight", &[32]);
    builder = builder.array("gemma3.attention.sliding_window_pattern", 7, 1, &[1]);
    let checkpoint = open(builder);
    let config = checkpoint.config();
    assert_eq!((&config.layer_kinds[..], config.sliding_window), (&[LayerKind::Sliding][..], Some(16)));
    assert_eq!((config.norm_weight_offset, config.local_rope_theta), (1.0, Some(10_000.0)));
    let norm = checkpoint.read("model.layers.0.post_feedforward_layernorm.weight", Dtype::F32).unwrap();
    assert_eq!(f32s(&norm)[..3], [-1.0, 0.0, 1.0]);
}

#[test]
fn llama3_scaling_is_recovered_from_its_factors() {
    let theta = 500_000.0;
    let scaling = |factor| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    // Divisors as GGUF converters compute them: 1 for short wavelengths, the factor for long ones, a ramp between.
    let divisors = |factor: f64| {
        (0..8).flat_map(move |pair| {
            let wavelength = std::f64::consts::TAU * f64::powf(theta, f64::from(pair) / 8.0);
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            ((1.0 / ((1.0 - smooth) / factor + smooth)) as f32).to_le_bytes()
        })
    };
    for factor in [8.0, 32.0] {
        let mut builder = GgufBuilder::new("llama").tensor("token_embd.weight", &[4, 32]);
        builder = builder.f32("llama.rope.freq_base", theta as f32).tensor("rope_freqs.weight", &[8]);
        let start = builder.data.len() - 32;
        builder.data.splice(start.., divisors(factor));
        let checkpoint = open(builder);
        assert_eq!(checkpoint.config().rope.as_ref().unwrap().scaling, scaling(factor as f32));
        assert_eq!(checkpoint.tensor_names().count(), 1);
    }
}

#[test]
fn the_end_of_turn_token_ends_a_generation() {
    let tokens = ["<s>", "</s>", "<|eot_id|>"];
    let base = || {
        let builder = GgufBuilder::new("llama").tensor("token_embd.weight", &[4, 32]);
        builder.texts("tokenizer.ggml.tokens", &tokens).u32("tokenizer.ggml.eos_token_id", 1)
    };
    assert_eq!(open(base()).config().eos_token_ids, [1]);
    assert_eq!(open(base().u32("tokenizer.ggml.eot_token_id", 0)).config().eos_token_ids, [1, 0]);
    let chat = open(base().text("tokenizer.chat_template", "{{ x }}<|eot_id|>"));
    assert_eq!(chat.generation_config().eos_token_ids, [1, 2]);
    assert_eq!((open(base()).end_tokens(), chat.end_tokens()), (vec![1], vec![1, 2]));
    assert_eq!(open(base().u32("tokenizer.ggml.eot_token_id", 0)).end_tokens(), [0, 1], "in ascending order");
    assert_eq!(chat.special_tokens().eos.as_deref(), Some("</s>"));
}

#[test]
fn sentence_piece_and_llama3_vocabularies_begin_with_bos_by_default() {
    let begins = |model: &str, pre: &str| {
        let builder = GgufBuilder::new("llama").tensor("token_embd.weight", &[4, 32]);
        let builder = builder.text("tokenizer.ggml.model", model).text("tokenizer.ggml.pre", pre);
        match open(builder).tokenizer_source() {
            TokenizerSource::Gguf(tokenizer) => (tokenizer.add_bos, tokenizer.add_space_prefix),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(begins("llama", "default"), (true, true));
    assert_eq!(begins("gpt2", "llama-bpe"), (true, false));
    assert_eq!(begins("gpt2", "qwen2"), (false, false));
}
