//! A model's files, opened: the one type the rest of Firebrick reads models through.

use crate::chat::{GenerationConfig, SpecialTokens};
use crate::config::ModelConfig;
use crate::dtype::{Dtype, StoredDtype};
use crate::dummy;
use crate::error::CheckpointError;
use crate::file::ModelFile;
use crate::folder::{self, Prompting};
use crate::gguf::{self, Gguf, GgufTokenizer};
use crate::packed::{self, PackedForm, PackedValues};
use crate::quantised::{Quantisation, QuantisedWeight};
use crate::tensor::{self, TensorEntry, TensorValues};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the tokenizer's data is.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// A tokenizer.json, which need not exist.
    Json(PathBuf),
    /// The content of a tokenizer.json; empty where there was none.
    JsonBytes(Vec<u8>),
    /// In the GGUF file, or read from an older vocab.json and merges.txt.
    Gguf(GgufTokenizer),
}

/// A model's files, their headers read and checked; weights are read when asked for.
///
/// Tensors have their Hugging Face names and values, whatever the format: GGUF's names are translated, its row order
/// and norms converted back. Spellings are unified: OPT's begin with `model.decoder.`, GPT-2's with `transformer.`.
/// GPT-2's projections are `[in, out]`, as Hugging Face stores them; all others are `[out, in]`.
pub struct Checkpoint {
    pub(crate) config: ModelConfig,
    /// Weights are made up, not read.
    pub(crate) dummy: bool,
    pub(crate) files: Vec<ModelFile>,
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    /// Weights in several stored tensors each.
    pub(crate) quantised: BTreeMap<String, QuantisedWeight>,
    pub(crate) unreadable: BTreeMap<String, String>,
    pub(crate) tokenizer: TokenizerSource,
    pub(crate) chat_template: Option<String>,
    pub(crate) special_tokens: SpecialTokens,
    pub(crate) generation_config: GenerationConfig,
}

impl Checkpoint {
    /// Opens a folder with config.json and safetensors, a .gguf file, or a folder with exactly one .gguf file.
    /// Where a folder has both, the safetensors count.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        if !path.is_dir() {
            return Self::from_gguf(ModelFile::open(path)?);
        }
        // Folders of GGUF files often carry the original's config.json.
        if folder::has_weights(path) {
            return folder::open(path);
        }
        match &gguf_files(path)?[..] {
            [] => folder::open(path),
            [single] => Self::from_gguf(ModelFile::open(single)?),
            several => Err(CheckpointError::NotAModel {
                path: path.display().to_string(),
                problem: format!("holds {} .gguf files; name one of them", several.len()),
            }),
        }
    }

    /// Reads a GGUF file that is already in memory, as in a browser; `name` is for messages.
    pub fn from_gguf_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        Self::from_gguf(ModelFile::from_bytes(name, bytes))
    }

    /// Reads the files of a folder that are already in memory, by their names: config.json, safetensors and the small files
    /// beside them. `name` is for messages.
    pub fn from_folder_bytes(name: &str, files: BTreeMap<String, Vec<u8>>) -> Result<Self, CheckpointError> {
        folder::open_in_memory(name, files)
    }

    fn from_gguf(file: ModelFile) -> Result<Self, CheckpointError> {
        let Gguf { config, tensors, tokenizer, chat_template, special_tokens } =
            gguf::parse(&file).map_err(|fault| fault.in_file(&file.name))?;
        let generation_config =
            GenerationConfig { eos_token_ids: config.eos_token_ids.clone(), ..GenerationConfig::default() };
        Ok(Self {
            config,
            dummy: false,
            files: vec![file],
            tensors,
            quantised: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            tokenizer: TokenizerSource::Gguf(tokenizer),
            chat_template,
            special_tokens,
            generation_config,
        })
    }

    /// The model with the tokenizer, the chat template and the marker tokens of a folder, of the folder that a
    /// tokenizer.json lies in, or of a `.gguf` file. What ends an answer stays the model's affair.
    pub fn with_tokenizer_of(self, path: &Path) -> Result<Self, CheckpointError> {
        let Prompting { tokenizer, chat_template, special_tokens } = match path.extension() {
            Some(extension) if extension == "gguf" => {
                let other = Self::from_gguf(ModelFile::open(path)?)?;
                Prompting {
                    tokenizer: other.tokenizer,
                    chat_template: other.chat_template,
                    special_tokens: other.special_tokens,
                }
            }
            Some(extension) if extension == "json" && path.is_file() => {
                folder::open_tokenizer(path.parent().unwrap_or(path), &self.config)?
            }
            _ => folder::open_tokenizer(path, &self.config)?,
        };
        Ok(Self { tokenizer, chat_template, special_tokens, ..self })
    }

    /// The model's sizes and variants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor's name, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.tensors.keys().chain(self.quantised.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// The tensor exists and can be read.
    pub fn contains(&self, name: &str) -> bool {
        if self.dummy {
            return name != "lm_head.weight" || !self.config.tie_word_embeddings;
        }
        self.tensors.contains_key(name) || self.quantised.contains_key(name)
    }

    /// The tensor's sizes, outermost first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match self.quantised.get(name) {
            Some(weight) => Some(&weight.shape),
            None => self.tensors.get(name).map(|entry| &entry.shape[..]),
        }
    }

    /// How the tensor lies in its file; `None` where it is in several parts, as [`ModelConfig::quantisation`] says.
    pub fn stored_dtype(&self, name: &str) -> Option<StoredDtype> {
        self.tensors.get(name).map(|entry| entry.stored)
    }

    /// Reads a tensor, converted or dequantised to `dtype` (rounded to nearest, ties to even).
    pub fn read(&self, name: &str, dtype: Dtype) -> Result<TensorValues, CheckpointError> {
        if let Some(weight) = self.quantised.get(name) {
            return weight.read(&self.files, dtype).map_err(|fault| fault.in_file(&self.files[weight.file].name));
        }
        let entry = self.entry(name)?;
        let bytes = self.files[entry.file].part(entry.range.clone());
        Ok(tensor::read(entry, bytes, dtype))
    }

    /// Reads a tensor that must have this shape.
    pub fn read_shaped(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<TensorValues, CheckpointError> {
        if self.dummy {
            return Ok(dummy::read(name, shape, dtype));
        }
        self.check_shape(name, shape)?;
        self.read(name, dtype)
    }

    /// Reads a quantised matrix that must have this shape as it is; `None` where it is not quantised, or has no packed form.
    pub fn read_packed(&self, name: &str, shape: &[usize]) -> Result<Option<PackedValues>, CheckpointError> {
        if self.dummy {
            return Ok(None);
        }
        self.check_shape(name, shape)?;
        if let Some(weight) = self.quantised.get(name) {
            return weight.pack(&self.files).map_err(|fault| fault.in_file(&self.files[weight.file].name));
        }
        let entry = self.entry(name)?;
        Ok(packed::pack(entry, &self.files[entry.file][entry.range.clone()]))
    }

    /// Whether a tensor has this shape, where it is there at all.
    pub(crate) fn check_shape(&self, name: &str, expected: &[usize]) -> Result<(), CheckpointError> {
        match self.shape(name) {
            Some(found) if found != expected => {
                let (name, found, expected) = (name.to_owned(), found.to_vec(), expected.to_vec());
                Err(CheckpointError::WrongShape { name, found, expected })
            }
            _ => Ok(()),
        }
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry, CheckpointError> {
        self.tensors.get(name).ok_or_else(|| match self.unreadable.get(name) {
            Some(stored) => CheckpointError::UnreadableTensor { name: name.to_owned(), stored: stored.clone() },
            None => CheckpointError::MissingTensor { name: name.to_owned() },
        })
    }

    /// Bytes of all tensors as stored.
    pub fn total_bytes(&self) -> u64 {
        let plain = self.tensors.values().map(|entry| entry.range.len() as u64);
        plain.chain(self.quantised.values().map(|weight| weight.stored_bytes as u64)).sum()
    }

    /// Numbers in the tensors that the model holds in memory; a tied output projection counts once.
    pub fn num_parameters(&self) -> u64 {
        if self.dummy {
            return dummy::num_parameters(&self.config);
        }
        let quantised = self.quantised.values().map(QuantisedWeight::num_elements);
        self.kept_tensors().map(num_elements).chain(quantised).sum()
    }

    /// What the file's weights are, as vLLM's `--quantization` calls it; `None` where they are plain.
    pub fn quantization_method(&self) -> Option<&'static str> {
        let has_blocks = || self.tensors.values().any(|entry| entry.stored.plain().is_none());
        let named = self.config.quantisation.as_ref().map(Quantisation::method);
        named.or_else(|| has_blocks().then_some("gguf"))
    }

    /// Bytes of the tensors that the model holds in memory, in `dtype` but for quantised matrices, which stay packed; `None`
    /// where there is none of those.
    pub fn packed_bytes(&self, dtype: Dtype) -> Option<u64> {
        let blocks = self.kept_tensors().map(|entry| (num_elements(entry), packed::form_of(entry)));
        let quantised = self.quantised.values().map(|weight| (weight.num_elements(), weight.packed_form(&self.files)));
        let matrices: Vec<_> = blocks.chain(quantised).collect();
        let bytes = |(elements, form): &(u64, Option<PackedForm>)| match form {
            Some(form) => elements / PackedForm::GROUP as u64 * form.words() as u64 * 4,
            None => elements * dtype.size() as u64,
        };
        matrices.iter().any(|(_, form)| form.is_some()).then(|| matrices.iter().map(bytes).sum())
    }

    pub(crate) fn kept_tensors(&self) -> impl Iterator<Item = &TensorEntry> {
        let tied = |name: &str| self.config.tie_word_embeddings && name == "lm_head.weight";
        self.tensors.iter().filter(move |(name, _)| !tied(name)).map(|(_, entry)| entry)
    }

    /// Where the tokenizer's data is.
    pub fn tokenizer_source(&self) -> TokenizerSource {
        self.tokenizer.clone()
    }

    /// The model's chat template.
    pub fn chat_template(&self) -> Option<String> {
        self.chat_template.clone()
    }

    /// Text of the marker tokens.
    pub fn special_tokens(&self) -> SpecialTokens {
        self.special_tokens.clone()
    }

    /// The model's own sampling defaults. The end tokens are the configuration's where no generation_config.json
    /// names any.
    pub fn generation_config(&self) -> GenerationConfig {
        self.generation_config.clone()
    }

    /// Tokens that end an answer, in ascending order: those of the configuration and of the sampling defaults.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut tokens = self.config.eos_token_ids.clone();
        tokens.extend(&self.generation_config.eos_token_ids);
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<&str> = self.files.iter().map(|file| &file.name[..]).collect();
        f.debug_struct("Checkpoint").field("files", &files).field("config", &self.config).finish_non_exhaustive()
    }
}

pub(crate) fn num_elements(entry: &TensorEntry) -> u64 {
    entry.shape.iter().map(|size| *size as u64).product()
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let failed = |source| CheckpointError::Io { path: folder.display().to_string(), source };
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            found.push(path);
        }
    }
    Ok(found)
}
