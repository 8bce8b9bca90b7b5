//! A Hugging Face style folder: config.json, safetensors in one file or several, and the small files beside them.

use crate::chat::{self, GenerationConfig, SpecialTokens, TokenizerConfig};
use crate::checkpoint::{Checkpoint, TokenizerSource};
use crate::config::{Architecture, ModelConfig, from_json};
use crate::dtype::{Dtype, StoredDtype};
use crate::error::{CheckpointError, Fault, printable};
use crate::file::ModelFile;
use crate::folder_files::FolderFiles;
use crate::names::normalise;
use crate::quantised::{self, Part, QuantisedWeight};
use crate::safetensors_file::{self, Stored};
use crate::tensor::{Fix, TensorEntry};
use crate::vocabulary_files;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Bounds on text files: several times the largest seen.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
pub(crate) const TOKENIZER_BYTES_MAX: u64 = 64 << 20;
const INDEX_BYTES_MAX: u64 = 16 << 20;
/// More weight files than any model has.
const SHARDS_MAX: usize = 4096;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The folder holds safetensors under a name that counts.
pub(crate) fn has_weights(folder: &Path) -> bool {
    [SINGLE, INDEX].iter().any(|name| folder.join(name).exists())
}

/// Opens a folder with a config.json and weights.
pub(crate) fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    open_with(FolderFiles::OnDisk(folder), false)
}

/// Opens the files of such a folder, which are in memory.
pub(crate) fn open_in_memory(name: &str, files: BTreeMap<String, Vec<u8>>) -> Result<Checkpoint, CheckpointError> {
    open_with(FolderFiles::InMemory { name, files }, false)
}

/// Opens a folder with a config.json, whose weights will be made up.
pub(crate) fn open_dummy(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    open_with(FolderFiles::OnDisk(folder), true)
}

fn open_with(mut folder: FolderFiles<'_>, dummy: bool) -> Result<Checkpoint, CheckpointError> {
    let config_text = folder.read_text("config.json", CONFIG_BYTES_MAX)?.ok_or_else(|| CheckpointError::NotAModel {
        path: folder.shown(),
        problem: "holds neither config.json nor a .gguf file".to_owned(),
    })?;
    let in_config = folder.in_file("config.json");
    // A first reading before the weights are touched, so that an unsupported model is refused as such.
    let mut config = from_json(&config_text, Dtype::F32).map_err(&in_config)?;

    let files = if dummy { Vec::new() } else { open_weights(&mut folder)? };
    let Tables { tensors, quantised, unreadable } = read_tables(&config, &files)?;
    if !dummy {
        config = from_json(&config_text, most_common_dtype(&tensors)).map_err(in_config)?;
    }

    let markers = Markers::read(&folder)?;
    let mut generation_config = match folder.read_text("generation_config.json", CONFIG_BYTES_MAX)? {
        Some(text) => GenerationConfig::parse(&text).map_err(folder.in_file("generation_config.json"))?,
        None => GenerationConfig::default(),
    };
    if generation_config.eos_token_ids.is_empty() {
        generation_config.eos_token_ids = config.eos_token_ids.clone();
    }
    let tokenizer = tokenizer(&mut folder, &config, &markers)?;
    let Markers { chat_template, special_tokens, .. } = markers;
    Ok(Checkpoint {
        config,
        dummy,
        files,
        tensors,
        quantised,
        unreadable,
        tokenizer,
        chat_template,
        special_tokens,
        generation_config,
    })
}

fn open_weights(folder: &mut FolderFiles<'_>) -> Result<Vec<ModelFile>, CheckpointError> {
    let index = folder.read_text(INDEX, INDEX_BYTES_MAX)?;
    match index {
        _ if folder.contains(SINGLE) => Ok(vec![folder.weights(SINGLE)?]),
        Some(index) => {
            let names = shard_names(&index).map_err(folder.in_file(INDEX))?;
            names.iter().map(|name| folder.weights(name)).collect()
        }
        None => Err(no_weights(folder)),
    }
}

fn no_weights(folder: &FolderFiles<'_>) -> CheckpointError {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].into_iter().find(|name| folder.contains(name));
    let Some(pickled) = pickled else {
        let problem = format!("holds config.json but neither {SINGLE} nor {INDEX}");
        return CheckpointError::NotAModel { path: folder.shown(), problem };
    };
    folder.in_file(pickled)(Fault::unsupported(
        "format",
        "pickled weights can run code when read and are not supported; convert them to model.safetensors \
         (in transformers: model.save_pretrained(folder, safe_serialization=True))",
    ))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files an index names: plain names inside the folder, nothing else.
fn shard_names(index: &str) -> Result<BTreeSet<String>, Fault> {
    let index: Index = serde_json::from_str(index).map_err(|error| Fault::corrupt("JSON", error.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.is_empty() || names.len() > SHARDS_MAX {
        let problem = format!("names {} files, expected 1 to {SHARDS_MAX}", names.len());
        return Err(Fault::corrupt("weight_map", problem));
    }
    let plain = |name: &str| {
        let characters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        characters && !name.starts_with('.') && name.ends_with(".safetensors")
    };
    match names.iter().find(|name| !plain(name)) {
        Some(name) => {
            let problem = format!("{} is not the plain name of a .safetensors file", printable(name));
            Err(Fault::corrupt("weight_map", problem))
        }
        None => Ok(names),
    }
}

struct Tables {
    tensors: BTreeMap<String, TensorEntry>,
    quantised: BTreeMap<String, QuantisedWeight>,
    /// Names and formats of tensors that are no weights.
    unreadable: BTreeMap<String, String>,
}

fn read_tables(config: &ModelConfig, files: &[ModelFile]) -> Result<Tables, CheckpointError> {
    let mut stored = read_headers(config.architecture, files)?;
    let mut tables = Tables { tensors: BTreeMap::new(), quantised: BTreeMap::new(), unreadable: BTreeMap::new() };
    if let Some(method) = &config.quantisation {
        for parts in quantised::take_parts(&mut stored) {
            let (name, file) = (format!("{}.weight", parts.name), &files[parts.first_file()].name);
            let weight = QuantisedWeight::new(method, parts).map_err(|fault| fault.in_file(file))?;
            tables.quantised.insert(name, weight);
        }
    }
    for (name, part) in stored {
        match safetensors_file::plain(part.dtype) {
            Some(dtype) => {
                let Part { file, range, shape, .. } = part;
                tables.tensors.insert(name, TensorEntry { file, range, stored: dtype, shape, fix: Fix::None });
            }
            None => {
                tables.unreadable.insert(name, part.dtype.to_string());
            }
        }
    }
    Ok(tables)
}

/// All tensors of all files.
fn read_headers(architecture: Architecture, files: &[ModelFile]) -> Result<BTreeMap<String, Part>, CheckpointError> {
    let mut tensors = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        let stored = safetensors_file::parse(file).map_err(|fault| fault.in_file(&file.name))?;
        for (name, Stored { shape, dtype, range }) in stored {
            let Some(normal) = normalise(architecture, &name) else { continue };
            if tensors.insert(normal, Part { file: index, range, shape, dtype }).is_some() {
                return Err(Fault::corrupt(name, "occurs twice").in_file(&file.name));
            }
        }
    }
    Ok(tensors)
}

fn most_common_dtype(tensors: &BTreeMap<String, TensorEntry>) -> Dtype {
    let bytes = |stored| -> usize {
        tensors.values().filter(|entry| entry.stored == stored).map(|entry| entry.range.len()).sum()
    };
    let candidates = [StoredDtype::F32, StoredDtype::F16, StoredDtype::BF16];
    candidates.into_iter().max_by_key(|stored| bytes(*stored)).and_then(StoredDtype::plain).unwrap_or(Dtype::F32)
}

/// How text becomes a model's tokens.
pub(crate) struct Prompting {
    pub(crate) tokenizer: TokenizerSource,
    pub(crate) chat_template: Option<String>,
    pub(crate) special_tokens: SpecialTokens,
}

/// What a folder says about tokens, which need not hold a model.
pub(crate) fn open_tokenizer(folder: &Path, config: &ModelConfig) -> Result<Prompting, CheckpointError> {
    let mut folder = FolderFiles::OnDisk(folder);
    let has_pair = folder.contains("vocab.json") && folder.contains("merges.txt");
    if !folder.contains("tokenizer.json") && !has_pair {
        let problem = "holds no tokenizer: neither tokenizer.json nor vocab.json with merges.txt".to_owned();
        return Err(CheckpointError::NotAModel { path: folder.shown(), problem });
    }
    let markers = Markers::read(&folder)?;
    let tokenizer = tokenizer(&mut folder, config, &markers)?;
    Ok(Prompting { tokenizer, chat_template: markers.chat_template, special_tokens: markers.special_tokens })
}

/// What the folder says about chat and marker tokens.
struct Markers {
    chat_template: Option<String>,
    special_tokens: SpecialTokens,
    add_bos: Option<bool>,
}

impl Markers {
    fn read(folder: &FolderFiles<'_>) -> Result<Self, CheckpointError> {
        let read = |name: &str| folder.read_text(name, TOKENIZER_BYTES_MAX);
        let parsed = |name: &str| match read(name)? {
            Some(text) => TokenizerConfig::parse(&text).map_err(folder.in_file(name)),
            None => Ok(TokenizerConfig::default()),
        };
        let (config, map) = (parsed("tokenizer_config.json")?, parsed("special_tokens_map.json")?);
        let template_file = match read("chat_template.jinja")? {
            Some(template) => Some(template),
            None => match read("chat_template.json")? {
                Some(text) => chat::parse_template_file(&text).map_err(folder.in_file("chat_template.json"))?,
                None => None,
            },
        };
        Ok(Self {
            chat_template: template_file.or(config.chat_template),
            special_tokens: config.special_tokens.or(map.special_tokens),
            add_bos: config.add_bos,
        })
    }
}

/// tokenizer.json where there is one; else the older vocab.json and merges.txt; else tokenizer.json, whose absence the
/// tokenizer then reports.
fn tokenizer(
    folder: &mut FolderFiles<'_>,
    config: &ModelConfig,
    markers: &Markers,
) -> Result<TokenizerSource, CheckpointError> {
    if folder.contains("tokenizer.json") {
        return Ok(folder.json_tokenizer());
    }
    let read = |name: &str| folder.read_text(name, TOKENIZER_BYTES_MAX);
    let (Some(vocabulary), Some(merges)) = (read("vocab.json")?, read("merges.txt")?) else {
        return Ok(folder.json_tokenizer());
    };
    // OPT's own tokenizer class puts the first token in front; GPT-2's does not.
    let add_bos = markers.add_bos.unwrap_or(config.architecture == Architecture::Opt);
    vocabulary_files::read(&vocabulary, &merges, &markers.special_tokens, add_bos)
        .map(TokenizerSource::Gguf)
        .map_err(folder.in_file("vocab.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_cannot_name_files_outside_its_folder() {
        for name in [
            "../x.safetensors",
            "/etc/x.safetensors",
            "a/b.safetensors",
            ".x.safetensors",
            "a\\b.safetensors",
            "x.bin",
            "",
        ] {
            let index = serde_json::json!({"weight_map": {"w": name}}).to_string();
            assert!(shard_names(&index).is_err(), "{name}");
        }
        let good = r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-1-of-2.safetensors"}}"#;
        assert_eq!(shard_names(good).unwrap().len(), 1);
    }
}
