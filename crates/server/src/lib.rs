//! The OpenAI-compatible HTTP server: the only crate that knows HTTP, JSON and tokio.
//!
//! A request is read (`body`), checked and turned into tokens (`validate`, `prompt`), handed to the engine's thread
//! (`engine_handle`), and its token events become text (`choice`) and JSON or server-sent events (`answer`). Dropping
//! the answer, because the client left, aborts the request.

mod answer;
mod anthropic;
mod auth;
mod batch_file;
mod beam_search;
mod body;
mod chat_format;
mod chat_messages;
mod choice;
mod closed_schema;
mod completion_format;
mod engine_handle;
mod engine_metrics;
mod engine_thread;
mod error;
mod event_frame;
mod exposition;
mod generation;
mod grammars;
mod head_limits;
mod heartbeat;
mod histogram;
mod incoming;
mod keep_alive;
mod limits;
mod listener;
mod live_request;
mod mask_workers;
mod message;
mod metrics;
mod open_requests;
mod openai;
mod openapi;
mod orca;
mod otlp;
mod page_files;
mod parameter;
mod patient_stream;
mod planted_fault;
mod pooling;
mod process_metrics;
mod processors;
mod prompt;
mod prompt_report;
mod quota;
mod recording;
mod request_id;
mod request_json;
mod request_timing;
mod request_trace;
mod responses;
mod routes;
mod sampling_params;
mod serve_request;
mod served_models;
mod shutdown;
mod state;
mod step_watch;
mod stream_pace;
mod stream_writer;
mod structured_output;
mod telemetry;
mod tls;
mod token_sets;
mod tool_use;
mod validate;

pub use auth::ApiKeys;
pub use batch_file::{BatchAnswer, BatchFile};
pub use engine_handle::{EngineHandle, EngineSnapshot, EngineState, EventStream, SubmitError};
pub use engine_metrics::{Ended, EngineMetrics, Refused};
pub use engine_thread::{EngineThreadOptions, spawn_engine, spawn_engine_recorded, spawn_engine_with};
pub use firebrick_engine::{LOGPROBS_MAX, Pooling};
pub use grammars::Grammars;
pub use limits::Limits;
pub use listener::{Listener, listen};
pub use otlp::TraceConfig;
pub use page_files::{PageError, PageFiles};
pub use quota::Quota;
pub use recording::{RecordingFile, RecordingHeader};
pub use routes::{metrics_router, router};
pub use shutdown::{drain, serve, serve_metrics};
pub use state::{
    AppState, CorsConfig, DeviceInfo, DeviceKind, Model, ModelLoader, ModelOrder, ModelSlot, SamplingDefaults,
    ServerConfig,
};
pub use tls::{ClientCertificates, Tls, TlsFiles};
