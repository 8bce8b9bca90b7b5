//! config.json in the variants that published models have.

use super::*;
use crate::dtype::Dtype;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2
    })
}

/// The base with some keys replaced.
fn with(mut base: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

fn parse(value: &Value) -> ModelConfig {
    from_json(&value.to_string(), Dtype::F32).unwrap_or_else(|fault| panic!("{}", fault.in_file("config.json")))
}

fn refusal(value: &Value) -> String {
    from_json(&value.to_string(), Dtype::F32).unwrap_err().in_file("config.json").to_string()
}

#[test]
fn llama_defaults_are_those_of_its_reference() {
    let config = parse(&llama());
    assert_eq!((config.head_dim, config.dtype, &config.eos_token_ids[..]), (64, Dtype::BF16, &[2][..]));
    assert_eq!(config.rope.as_ref().unwrap().theta, 10_000.0);
    assert!(!config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias && !config.qk_norm);
    assert_eq!((config.sliding_window, config.layer_kinds.len()), (None, 22));
    assert_eq!(config.num_parameters(), 1_100_048_384);
}

#[test]
fn end_tokens_are_one_or_many() {
    let config = parse(&with(llama(), json!({"eos_token_id": [128001, 128009], "dtype": "float16"})));
    assert_eq!(config.eos_token_ids, [128001, 128009]);
    assert_eq!(config.dtype, Dtype::F16);
    assert!(parse(&with(llama(), json!({"eos_token_id": null}))).eos_token_ids.is_empty());
}

#[test]
fn a_missing_dtype_is_that_of_the_files() {
    let silent = with(llama(), json!({"torch_dtype": null}));
    assert_eq!(from_json(&silent.to_string(), Dtype::F16).unwrap().dtype, Dtype::F16);
}

#[test]
fn rope_scaling_is_read_in_old_and_new_forms() {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let settings = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let old = parse(&with(llama(), json!({"rope_theta": 500000.0, "rope_scaling": settings})));
    let new = parse(&with(llama(), json!({"rope_parameters": with(settings, json!({"rope_theta": 500000.0}))})));
    for rope in [old.rope.unwrap(), new.rope.unwrap()] {
        assert_eq!((rope.theta, rope.scaling), (500_000.0, llama3.clone()));
    }
    let linear = parse(&with(llama(), json!({"rope_scaling": {"type": "linear", "factor": 2.0}})));
    assert_eq!(linear.rope.unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
    let default = parse(&with(llama(), json!({"rope_scaling": {"rope_type": "default"}})));
    assert_eq!(default.rope.unwrap().scaling, RopeScaling::None);
}

#[test]
fn unknown_rope_scaling_is_refused_by_name() {
    let yarn = with(llama(), json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}));
    assert_eq!(
        refusal(&yarn),
        "config.json: rope_scaling.rope_type: yarn is not supported; supported: default, linear, llama3, longrope"
    );
}

#[test]
fn mistral_slides_unless_told_null() {
    let mistral = with(llama(), json!({"architectures": ["MistralForCausalLM"]}));
    let slides = parse(&with(mistral.clone(), json!({"sliding_window": 4096})));
    assert_eq!((slides.sliding_window, slides.layer_kinds[0]), (Some(4096), LayerKind::Sliding));
    let full = parse(&with(mistral.clone(), json!({"sliding_window": null})));
    assert_eq!((full.sliding_window, full.layer_kinds[0]), (None, LayerKind::Full));
    assert_eq!(parse(&mistral).sliding_window, Some(4096));
}

#[test]
fn qwen2_has_biases_on_queries_keys_and_values_only() {
    let qwen = with(
        llama(),
        json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 1024, "use_sliding_window": false,
            "max_window_layers": 20}),
    );
    let config = parse(&qwen);
    assert!(config.attention_bias && !config.attention_output_bias && !config.mlp_bias);
    assert_eq!(config.sliding_window, None);
    let slides = parse(&with(qwen, json!({"use_sliding_window": true})));
    assert_eq!((slides.layer_kinds[19], slides.layer_kinds[20]), (LayerKind::Full, LayerKind::Sliding));
}

#[test]
fn qwen3_normalises_queries_and_keys_and_states_its_head_size() {
    let qwen = json!({
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 40960, "rope_theta": 1000000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "sliding_window": null, "use_sliding_window": false, "attention_bias": false, "rope_scaling": null
    });
    let config = parse(&qwen);
    assert!(config.qk_norm && config.tie_word_embeddings && !config.attention_bias);
    assert_eq!((config.query_size(), config.kv_size()), (2048, 1024));
    assert_eq!(config.num_parameters(), 596_049_920);
}

#[test]
fn gemma3_nested_under_text_config_takes_its_family_defaults() {
    let gemma = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16", "vision_config": {},
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    });
    let config = parse(&gemma);
    assert_eq!(config.architecture, Architecture::Gemma3);
    assert_eq!((config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size), (8, 4, 256, 262_208));
    assert_eq!(config.rope.as_ref().unwrap().scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!((config.local_rope_theta, config.attention_scale), (Some(10_000.0), 0.0625));
    assert_eq!((config.norm_weight_offset, config.embedding_scale), (1.0, 2560f32.sqrt()));
    assert_eq!((config.layer_kinds[4], config.layer_kinds[5]), (LayerKind::Sliding, LayerKind::Full));
    assert!(config.tie_word_embeddings && config.qk_norm);
    assert_eq!((&config.eos_token_ids[..], config.dtype), (&[1, 106][..], Dtype::BF16));
    assert_eq!(config.num_parameters(), 3_880_263_168);
}

#[test]
fn gemma3_rope_parameters_differ_by_layer_kind() {
    let gemma = with(
        llama(),
        json!({"architectures": ["Gemma3ForCausalLM"], "sliding_window": 512,
            "layer_types": vec!["sliding_attention"; 22],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}}),
    );
    let config = parse(&gemma);
    assert_eq!((config.rope.as_ref().unwrap().theta, config.local_rope_theta), (1_000_000.0, Some(20_000.0)));
    let short = with(gemma, json!({"layer_types": ["full_attention"]}));
    assert_eq!(refusal(&short), "config.json: layer_types: has 1 entries for 22 layers");
}

fn opt() -> Value {
    json!({
        "architectures": ["OPTForCausalLM"], "vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 2048,
        "word_embed_proj_dim": 768, "do_layer_norm_before": true, "activation_function": "relu",
        "torch_dtype": "float16", "bos_token_id": 2, "eos_token_id": 2
    })
}

#[test]
fn opt_learns_positions_with_an_offset_of_two() {
    let config = parse(&opt());
    assert_eq!((&config.rope, config.position_offset, config.activation), (&None, Some(2), Activation::Relu));
    assert!(config.tie_word_embeddings && config.attention_bias && config.attention_output_bias && config.mlp_bias);
    assert_eq!(config.num_parameters(), 125_239_296);
    let projected = with(opt(), json!({"word_embed_proj_dim": 512}));
    assert!(refusal(&projected).contains("word_embed_proj_dim: 512 is not supported"));
}

#[test]
fn gpt2_has_its_own_names() {
    let gpt2 = json!({
        "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_positions": 1024, "n_ctx": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5
    });
    let config = parse(&gpt2);
    assert_eq!((config.intermediate_size, config.position_offset), (3072, Some(0)));
    assert_eq!(config.activation, Activation::GeluTanh);
    assert_eq!(config.num_parameters(), 124_439_808);
}

#[test]
fn unsupported_models_are_told_what_is_supported() {
    let text = refusal(&json!({"architectures": ["MambaForCausalLM"]}));
    assert!(text.contains("Model MambaForCausalLM is not supported; supported: LlamaForCausalLM, "), "{text}");
    assert_eq!(
        parse(&with(llama(), json!({"architectures": null, "model_type": "qwen3"}))).architecture,
        Architecture::Qwen3
    );
}

#[test]
fn quantisations_are_read_or_refused_by_name() {
    let with_method = |method: Value| with(llama(), json!({"quantization_config": method}));
    let weights = |form: &str, weights: Value| json!({"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}});
    let read = [
        (json!({"quant_method": "gptq", "bits": 4}), "gptq of 4 bits"),
        (json!({"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2", "dynamic": {}}), "gptq of 8 bits"),
        (json!({"quant_method": "awq", "w_bit": 4, "version": "GEMM"}), "awq of 4 bits"),
        (json!({"quant_method": "fp8", "weight_block_size": [128, 128]}), "fp8 of 8 bits"),
        (weights("pack-quantized", json!({"num_bits": 4})), "compressed-tensors of 4 bits"),
        (weights("float-quantized", json!({"num_bits": 8})), "compressed-tensors of 8 bits"),
    ];
    for (method, shown) in read {
        let config = parse(&with_method(method));
        assert_eq!(config.quantisation.map(|method| method.to_string()).as_deref(), Some(shown));
    }
    let refused = [
        (json!({"quant_method": "squeezellm"}), "quant_method: squeezellm is not supported; supported: GPTQ"),
        (json!({}), "quant_method: unnamed is not supported"),
        (json!({"quant_method": "gptq", "bits": 3}), "bits: 3 is not supported"),
        (json!({"quant_method": "gptq"}), "bits: is missing"),
        (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "checkpoint_format: marlin is"),
        (json!({"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}}), "dynamic: other bits for some layers is"),
        (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "version: gemv is not supported"),
        (json!({"quant_method": "awq", "bits": 8}), "bits: 8 is not supported"),
        (json!({"quant_method": "fp8", "weight_block_size": [128, 0]}), "weight_block_size: is not a number of rows"),
        (weights("nvfp4-pack-quantized", json!({"num_bits": 4})), "format: nvfp4-pack-quantized is not supported"),
        (weights("int-quantized", json!({"num_bits": 4})), "config_groups.weights.num_bits: 4 is not supported"),
        (json!({"quant_method": "compressed-tensors"}), "config_groups: names no weights"),
        (
            json!({"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}}),
            "several groups of layers",
        ),
    ];
    for (method, expected) in refused {
        let text = refusal(&with_method(method.clone()));
        assert!(text.contains(expected), "{method}: {text}");
        assert!(text.starts_with("config.json: quantization_config."), "{text}");
    }
    assert!(refusal(&with_method(json!("gptq"))).contains("quantization_config: is not an object"));
    let gpt2 = json!({"architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 1, "n_head": 2,
                      "quantization_config": {"quant_method": "gptq", "bits": 4}});
    assert!(refusal(&gpt2).contains("not supported for GPT-2"));
}

#[test]
fn hostile_values_are_refused_by_key() {
    let cases = [
        (json!({"num_hidden_layers": 1_000_000_000_000u64}), "number of layers"),
        (json!({"num_hidden_layers": -1}), "num_hidden_layers"),
        (json!({"hidden_size": 1e300}), "hidden_size"),
        (json!({"vocab_size": 0}), "vocabulary size"),
        (json!({"num_attention_heads": 0}), "number of heads"),
        (json!({"num_key_value_heads": 5}), "number of key/value heads"),
        (json!({"rms_norm_eps": -1.0}), "norm epsilon"),
        (json!({"rms_norm_eps": 1e300}), "rms_norm_eps"),
        (json!({"head_dim": 63}), "rotary size"),
        (json!({"rope_theta": 0}), "rope theta"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "rope scaling factor"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": "x"}), "rope_scaling"),
        (json!({"eos_token_id": "x"}), "eos_token_id"),
        (json!({"eos_token_id": [[]]}), "eos_token_id"),
        (json!({"hidden_act": "xielu"}), "hidden_act"),
        (json!({"torch_dtype": "float8_e4m3fn"}), "torch_dtype"),
        (json!({"text_config": []}), "text_config"),
    ];
    for (change, field) in cases {
        let text = refusal(&with(llama(), change.clone()));
        assert!(text.starts_with(&format!("config.json: {field}: ")), "{change}: {text}");
        assert!(!text.contains('\n'));
    }
    assert!(from_json(&"[".repeat(100_000), Dtype::F32).is_err());
}

#[test]
fn phi3_fuses_projections_and_may_rotate_a_part_of_each_head() {
    let phi = json!({
        "architectures": ["Phi3ForCausalLM"], "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-5,
        "sliding_window": 2047, "rope_scaling": null, "torch_dtype": "bfloat16", "eos_token_id": 32000
    });
    let config = parse(&phi);
    assert!(config.architecture.fuses_projections());
    assert_eq!((config.head_dim, config.max_position_embeddings, config.sliding_window), (96, 4096, Some(2047)));
    assert_eq!(config.rope.as_ref().map(|rope| (rope.theta, rope.rotary_dim)), Some((10_000.0, 96)));
    assert_eq!(config.num_parameters(), 3_821_079_552);
    let nested = json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75});
    for part in [json!({"partial_rotary_factor": 0.75}), json!({"rope_parameters": nested})] {
        assert_eq!(parse(&with(phi.clone(), part)).rope.map(|rope| rope.rotary_dim), Some(72));
    }
    let long = |factors: Vec<f32>| {
        let scaling = json!({"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": factors});
        with(phi.clone(), json!({"rope_scaling": scaling, "original_max_position_embeddings": 4096}))
    };
    assert!(matches!(parse(&long(vec![2.0; 48])).rope.unwrap().scaling, RopeScaling::Long(_)));
    assert!(refusal(&long(vec![2.0; 32])).contains("long_factor: has 32 numbers for 48 rotated pairs"));
    assert!(refusal(&long(vec![0.0; 48])).contains("long_factor: is 0, expected a positive number"));
}
