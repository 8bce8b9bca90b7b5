//! Firebrick: an LLM serving engine with one model source for CPU, wgpu and CUDA.
//!
//! [`Llm`] generates text offline; [`Loaded`] holds the parts that a server is made of. The `firebrick` binary serves
//! the OpenAI API with them.
//!
//! ```no_run
//! use firebrick::{Llm, Options, SamplingParams};
//!
//! let mut llm = Llm::load("HuggingFaceTB/SmolLM2-135M-Instruct", Options::default())?;
//! for completion in llm.generate(&["The capital of France is"], &SamplingParams::greedy())? {
//!     println!("{}", completion.text);
//! }
//! # Ok::<(), firebrick::Error>(())
//! ```

mod error;
mod forms;
mod llm;
mod loaded;
mod memory;
mod options;
mod source;
mod tokenizer;

pub use error::Error;
pub use firebrick_engine::{FinishReason, SamplingParams, SchedulingPolicy, TokenId};
pub use firebrick_ops::{Backend, settle_devices};
pub use firebrick_text::{Message, MessageContent};
pub use forms::chosen_backend;
pub use llm::{Completion, Llm};
pub use loaded::{LoadReport, Loaded, fixed_bytes, load_engine};
pub use options::{DeviceChoice, KvCacheDtype, Options};
pub use source::{
    CachedModel, HubId, ModelSource, Origin, REFERENCE_MODEL, SourceEvent, SourceOptions, cached_models, models_folder,
    remove_cached, resolve, resolve_with,
};
pub use tokenizer::tokenizer;
