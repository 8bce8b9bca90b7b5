//! What a model's files hold and what they need.
//!
//! [`Checkpoint::open`] reads a Hugging Face folder (safetensors) or a GGUF file into one [`ModelConfig`] and one set
//! of tensor names; [`Checkpoint::read`] converts or dequantises a tensor; [`MemoryPlan`] says whether it all fits.
//! Files are untrusted: whatever their bytes, the answer is a value or a one-line error naming file and field.
//! Nothing here computes with a model or knows a device.

mod blocks;
mod chat;
mod checkpoint;
mod config;
mod dtype;
mod dummy;
mod error;
mod file;
mod folder;
mod folder_files;
mod fp8;
mod gguf;
mod gpu;
mod names;
mod packed;
mod plan;
mod quantised;
mod safetensors_file;
mod sentence_pooling;
mod tensor;
mod vocabulary_files;

pub use chat::{GenerationConfig, SpecialTokens};
pub use checkpoint::{Checkpoint, TokenizerSource};
pub use config::{Activation, Architecture, LayerKind, LongRope, ModelConfig, RopeConfig, RopeScaling};
pub use dtype::{Dtype, KvDtype, StoredDtype, UnknownDtype};
pub use error::CheckpointError;
pub use fp8::{FP8_MULTIPLE, Fp8Values};
pub use gguf::GgufTokenizer;
pub use gpu::{BatchLimits, GPUS, Gpu};
pub use packed::{Codes, PackedForm, PackedValues, Scales};
pub use plan::{MemoryPlan, PlanOptions, PlanRefusal};
pub use quantised::Quantisation;
pub use sentence_pooling::{SentencePooling, sentence_pooling};
pub use tensor::TensorValues;
