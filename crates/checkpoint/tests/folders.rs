//! Hugging Face folders: what is read from which file, and what is refused.

mod support;

use firebrick_checkpoint::{Checkpoint, Dtype, StoredDtype, TokenizerSource};
use serde_json::{Value, json};
use std::path::Path;
use support::{GgufBuilder, Lcg, llama_config, safetensors, sound_safetensors};
use tempfile::TempDir;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("a writable folder");
    }
    folder
}

/// The error without the folder's path.
fn refusal(folder: &TempDir) -> String {
    let text = Checkpoint::open(folder.path()).expect_err("must be refused").to_string();
    assert!(!text.contains('\n'), "{text}");
    text.replace(&format!("{}/", folder.path().display()), "").replace(&folder.path().display().to_string(), "folder")
}

fn config() -> Vec<u8> {
    llama_config().to_string().into_bytes()
}

fn weights() -> Vec<u8> {
    sound_safetensors(&[("model.embed_tokens.weight", &[4, 8]), ("model.norm.weight", &[8])])
}

#[test]
fn a_tokenizer_may_come_from_elsewhere_with_its_template_and_markers() {
    let own = r#"{"chat_template": "own", "bos_token": "<own>"}"#;
    let model = folder(&[
        ("config.json", &config()),
        ("model.safetensors", &weights()),
        ("tokenizer_config.json", own.as_bytes()),
    ]);
    let other = r#"{"chat_template": "other", "bos_token": "<other>"}"#;
    let elsewhere = folder(&[("tokenizer.json", b"{}"), ("tokenizer_config.json", other.as_bytes())]);
    for path in [elsewhere.path().to_owned(), elsewhere.path().join("tokenizer.json")] {
        let checkpoint = Checkpoint::open(model.path()).unwrap().with_tokenizer_of(&path).unwrap();
        let TokenizerSource::Json(file) = checkpoint.tokenizer_source() else { panic!("a tokenizer.json") };
        assert_eq!(file, elsewhere.path().join("tokenizer.json"));
        assert_eq!(checkpoint.chat_template().as_deref(), Some("other"));
        assert_eq!(checkpoint.special_tokens().bos.as_deref(), Some("<other>"));
        assert_eq!(checkpoint.end_tokens(), [3], "the model's");
    }
    for (path, problem) in [
        (model.path().to_owned(), "holds no tokenizer"),
        ("org/name".into(), "holds no tokenizer"),
        ("no.gguf".into(), "no.gguf"),
    ] {
        let error =
            Checkpoint::open(model.path()).unwrap().with_tokenizer_of(&path).expect_err("no tokenizer is there");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn a_single_file_and_shards_hold_the_same_tensors() {
    let single = folder(&[("config.json", &config()), ("model.safetensors", &weights())]);
    let index = json!({"metadata": {"total_size": 1}, "weight_map": {
        "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
        "model.norm.weight": "model-00002-of-00002.safetensors"}});
    let sharded = folder(&[
        ("config.json", &config()),
        ("model.safetensors.index.json", index.to_string().as_bytes()),
        ("model-00001-of-00002.safetensors", &sound_safetensors(&[("model.embed_tokens.weight", &[4, 8])])),
        ("model-00002-of-00002.safetensors", &sound_safetensors(&[("model.norm.weight", &[8])])),
    ]);
    for folder in [&single, &sharded] {
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(Vec::from_iter(checkpoint.tensor_names()), ["model.embed_tokens.weight", "model.norm.weight"]);
        assert_eq!(checkpoint.shape("model.embed_tokens.weight"), Some(&[4, 8][..]));
        assert_eq!(checkpoint.stored_dtype("model.norm.weight"), Some(StoredDtype::F32));
        assert_eq!((checkpoint.total_bytes(), checkpoint.num_parameters()), (160, 40));
        assert_eq!(checkpoint.config().dtype, Dtype::F32);
        assert_eq!(checkpoint.generation_config().eos_token_ids, [3]);
        assert_eq!(checkpoint.read("model.norm.weight", Dtype::BF16).unwrap().bytes.len(), 16);
    }
    std::fs::remove_file(sharded.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(refusal(&sharded).starts_with("model-00002-of-00002.safetensors: "));
}

#[test]
fn a_folder_with_one_gguf_file_is_that_file() {
    let gguf = GgufBuilder::new("llama").tensor("token_embd.weight", &[4, 32]).build();
    let one = folder(&[("model.gguf", &gguf)]);
    assert!(Checkpoint::open(one.path()).unwrap().contains("model.embed_tokens.weight"));
    assert!(Checkpoint::open(&one.path().join("model.gguf")).is_ok());
    let with_config = folder(&[("model.gguf", &gguf), ("config.json", &config())]);
    assert!(Checkpoint::open(with_config.path()).unwrap().contains("model.embed_tokens.weight"));
    let two = folder(&[("a.gguf", &gguf), ("b.GGUF", &gguf)]);
    assert_eq!(refusal(&two), "folder: holds 2 .gguf files; name one of them");
}

#[test]
fn a_folder_in_memory_is_the_same_model_as_on_disk() {
    let contents: [(&str, Vec<u8>); 4] = [
        ("config.json", config().to_vec()),
        ("model.safetensors", weights().to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", br#"{"chat_template": "c", "eos_token": "</s>"}"#.to_vec()),
    ];
    let files: Vec<(&str, &[u8])> = contents.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
    let on_disk = Checkpoint::open(folder(&files).path()).unwrap();
    let owned = |(name, bytes): &(&str, Vec<u8>)| ((*name).to_owned(), bytes.clone());
    let in_memory = Checkpoint::from_folder_bytes("tiny", contents.iter().map(owned).collect()).unwrap();
    assert_eq!(in_memory.config(), on_disk.config());
    assert!(in_memory.tensor_names().eq(on_disk.tensor_names()) && in_memory.tensor_names().count() > 0);
    for name in on_disk.tensor_names() {
        assert_eq!(in_memory.read(name, Dtype::F32).unwrap(), on_disk.read(name, Dtype::F32).unwrap(), "{name}");
    }
    assert_eq!(in_memory.tokenizer_source(), TokenizerSource::JsonBytes(b"{}".to_vec()));
    assert_eq!(in_memory.chat_template().as_deref(), Some("c"));
    let without = contents.iter().filter(|(name, _)| *name != "model.safetensors").map(owned).collect();
    let refused = Checkpoint::from_folder_bytes("tiny", without).unwrap_err().to_string();
    assert!(refused.starts_with("tiny: holds config.json but neither"), "{refused}");
    let index =
        ("model.safetensors.index.json".to_owned(), br#"{"weight_map": {"a": "model-1.safetensors"}}"#.to_vec());
    let only_index = [owned(&contents[0]), index].into_iter().collect();
    let refused = Checkpoint::from_folder_bytes("tiny", only_index).unwrap_err().to_string();
    assert!(refused.starts_with("tiny/model-1.safetensors: "), "{refused}");
}

#[test]
fn what_is_no_model_is_told_so() {
    assert_eq!(refusal(&folder(&[])), "folder: holds neither config.json nor a .gguf file");
    let bare = folder(&[("config.json", &config())]);
    let text = "folder: holds config.json but neither model.safetensors nor model.safetensors.index.json";
    assert_eq!(refusal(&bare), text);
    let missing = Checkpoint::open(Path::new("/nonexistent/model")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/model: "), "{missing}");
}

#[test]
fn pickled_weights_are_refused_with_the_way_out() {
    let pickled = folder(&[("config.json", &config()), ("pytorch_model.bin", b"x")]);
    let text = refusal(&pickled);
    assert!(text.starts_with("pytorch_model.bin: format: pickled weights can run code"), "{text}");
    assert!(text.contains("convert them to model.safetensors"), "{text}");
}

#[test]
fn an_unsupported_model_is_refused_before_its_weights_are_looked_for() {
    let mamba = folder(&[("config.json", br#"{"architectures": ["MambaForCausalLM"]}"#)]);
    assert!(refusal(&mamba).starts_with("config.json: architectures: Model MambaForCausalLM is not supported"));
}

#[test]
fn chat_files_have_an_order_of_precedence() {
    let tokenizer_config = br#"{"chat_template": "c", "bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;
    let files: [(&str, &[u8]); 6] = [
        ("config.json", &config()),
        ("model.safetensors", &weights()),
        ("tokenizer_config.json", tokenizer_config),
        ("special_tokens_map.json", br#"{"unk_token": "<unk>", "bos_token": "other"}"#),
        ("generation_config.json", br#"{"temperature": 0.7, "do_sample": true}"#),
        ("tokenizer.json", b"{}"),
    ];
    let folder = folder(&files);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tokens = checkpoint.special_tokens();
    assert_eq!((tokens.bos.as_deref(), tokens.eos.as_deref()), (Some("<s>"), Some("</s>")));
    assert_eq!((tokens.unk.as_deref(), tokens.pad), (Some("<unk>"), None));
    assert_eq!(checkpoint.chat_template().as_deref(), Some("c"));
    assert_eq!(checkpoint.tokenizer_source(), TokenizerSource::Json(folder.path().join("tokenizer.json")));
    let generation = checkpoint.generation_config();
    assert_eq!((generation.temperature, generation.do_sample), (Some(0.7), Some(true)));
    assert_eq!(generation.eos_token_ids, [3]);

    std::fs::write(folder.path().join("chat_template.json"), r#"{"chat_template": "j"}"#).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().chat_template().as_deref(), Some("j"));
    std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().chat_template().as_deref(), Some("file"));
}

#[test]
fn vocab_and_merges_stand_in_for_a_tokenizer_json() {
    let older = folder(&[
        ("config.json", &config()),
        ("model.safetensors", &weights()),
        ("vocab.json", br#"{"a": 0, "b": 1, "ab": 2, "</s>": 3}"#),
        ("merges.txt", b"#version: 0.2\na b\n"),
        ("special_tokens_map.json", br#"{"eos_token": "</s>"}"#),
    ]);
    let TokenizerSource::Gguf(tokenizer) = Checkpoint::open(older.path()).unwrap().tokenizer_source() else {
        panic!("there is no tokenizer.json");
    };
    assert_eq!((tokenizer.eos, tokenizer.add_bos, &tokenizer.merges[..]), (Some(3), false, &["a b".to_owned()][..]));
}

#[test]
fn tensors_that_are_no_weights_are_told_when_read() {
    let header = json!({"x.position_ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}});
    let folder = folder(&[("config.json", &config()), ("model.safetensors", &safetensors(&header, &[0; 8]))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(!checkpoint.contains("x.position_ids"));
    let error = checkpoint.read("x.position_ids", Dtype::F32).unwrap_err().to_string();
    assert_eq!(error, "tensor x.position_ids is stored as I64; supported: F32, F16, BF16");
}

fn header_refusal(header: &Value, data: &[u8]) -> String {
    refusal(&folder(&[("config.json", &config()), ("model.safetensors", &safetensors(header, data))]))
}

#[test]
fn safetensors_headers_that_lie_are_told_by_tensor() {
    let tensor =
        |shape: &[u64], start: u64, end: u64| json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
    let most = u64::MAX;
    let cases = [
        (json!({"a": tensor(&[2], 0, 4)}), "a: shape [2] of F32 does not take the 4 bytes it has"),
        (json!({"a": tensor(&[most, most], 0, 4)}), "a: shape "),
        (json!({"a": tensor(&[2], 0, 80)}), "a: data_offsets [0, 80] leave the 8 bytes"),
        (json!({"a": tensor(&[2], most, most)}), "a: data_offsets "),
        (json!({"a": tensor(&[2], 8, 0)}), "a: data_offsets [8, 0]"),
        (json!({"a": tensor(&[1], 4, 8)}), "a: starts at "),
        (json!({"a": tensor(&[1], 0, 4)}), "tensor data: 4 bytes after the last tensor belong to none"),
        (json!({"a": tensor(&[2], 0, 8), "b": tensor(&[1], 4, 8)}), "b: starts at "),
        (json!({"a": {"dtype": "F7", "shape": [], "data_offsets": [0, 0]}}), "header: "),
        (json!({"a": {}}), "a: is not a tensor's description"),
        (json!([]), "header: "),
    ];
    for (header, expected) in cases {
        let text = header_refusal(&header, &[0; 8]);
        assert!(text.starts_with(&format!("model.safetensors: {expected}")), "{text}\nexpected {expected}");
    }
    let long = folder(&[("config.json", &config()), ("model.safetensors", &u64::MAX.to_le_bytes())]);
    assert!(refusal(&long).starts_with("model.safetensors: header length: is 18446744073709551615, at most"));
}

#[test]
fn every_truncation_of_a_safetensors_file_is_an_error() {
    let whole = weights();
    let folder = folder(&[("config.json", &config())]);
    for length in 0..whole.len() {
        std::fs::write(folder.path().join("model.safetensors"), &whole[..length]).unwrap();
        assert!(refusal(&folder).starts_with("model.safetensors: "), "{length}");
    }
}

#[test]
fn random_damage_never_panics() {
    let mut random = Lcg(7);
    let files = [("config.json", config()), ("model.safetensors", weights())];
    let folder = folder(&files.each_ref().map(|(name, bytes)| (*name, &bytes[..])));
    for _ in 0..1500 {
        for (name, sound) in &files {
            let mut bytes = sound.clone();
            let place = random.next(bytes.len());
            bytes[place] =
                if random.next(2) == 0 { random.next(256) as u8 } else { bytes[place] ^ (1 << random.next(8)) };
            std::fs::write(folder.path().join(name), &bytes).unwrap();
            if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
                for name in checkpoint.tensor_names() {
                    checkpoint.read(name, Dtype::F16).expect("a tensor that was listed can be read");
                }
            }
            std::fs::write(folder.path().join(name), sound).unwrap();
        }
    }
}
