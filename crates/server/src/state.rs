//! What every handler sees: configuration, the model once it is loaded, and how much work is open.
//!
//! The port opens before the model is there, so the model sits in a slot that is loading, ready or failed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use firebrick_engine::{Pooling, TokenId};
use firebrick_text::{ChatTemplate, Dialect, Tokenizer};
use serde_json::{Map, Value};
use tokio::sync::Notify;

use crate::auth::ApiKeys;
use crate::engine_handle::EngineHandle;
use crate::error::{ApiError, ErrorKind};
use crate::grammars::Grammars;
use crate::limits::Limits;
use crate::metrics::{HttpMetrics, Outcome};
use crate::open_requests::OpenRequests;
use crate::otlp::{TraceConfig, Tracer};
use crate::page_files::PageFiles;
use crate::planted_fault::PlantedFault;
use crate::processors::Processors;
use crate::quota::{Accounts, Quota};
use crate::request_id::IdSource;
use crate::responses::{ResponseStore, StoreLimits};
use crate::served_models::ServedModels;

/// What the command line decides about the server.
#[derive(Clone)]
pub struct ServerConfig {
    /// What a request may take.
    pub limits: Limits,
    /// Who may call.
    pub api_keys: ApiKeys,
    /// Which web pages may call; `None` sends no CORS headers.
    pub cors: Option<CorsConfig>,
    /// Who may call the routes of class `admin`; they exist only where there is such a key.
    pub admin_keys: ApiKeys,
    /// What each API key may take.
    pub quota: Quota,
    /// Whether `/docs` and `/openapi.json` exist.
    pub docs: bool,
    /// The page at `/ui/`, if there is one.
    pub page: Option<Arc<PageFiles>>,
    /// Whether `/v1/trace` exists, which needs an admin key too.
    pub trace: bool,
    /// Where traces of requests go; `None` makes none.
    pub traces: Option<TraceConfig>,
    /// A path such as `/llm` under which the routes are found as well, for proxies that do not remove it.
    pub root_path: Option<String>,
    /// Whether each request is logged; its texts never are.
    pub log_requests: bool,
    /// Every chunk of a stream has the usage so far, and the last one the whole, whatever the client asked for.
    pub force_usage: bool,
    /// Tokens that one chunk of a stream holds at least, the first and the last chunk aside.
    pub stream_interval: u32,
    /// A busy engine whose last step is older than this is unhealthy.
    pub heartbeat_age_max: Duration,
    /// Answered by `/version`.
    pub version: &'static str,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            api_keys: ApiKeys::new(Vec::<String>::new()),
            cors: None,
            admin_keys: ApiKeys::new(Vec::<String>::new()),
            quota: Quota::default(),
            docs: true,
            page: None,
            trace: false,
            traces: None,
            root_path: None,
            log_requests: true,
            force_usage: false,
            stream_interval: 1,
            heartbeat_age_max: Duration::from_secs(5),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// Allowed origins, methods and headers of web pages; `*` allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsConfig {
    /// Origins such as `https://example.org`.
    pub origins: Vec<String>,
    /// Methods such as `POST`.
    pub methods: Vec<String>,
    /// Request headers.
    pub headers: Vec<String>,
}

/// The sampling parameters of requests that do not say; from the model's `generation_config.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// See [`firebrick_engine::SamplingParams`].
    pub temperature: Option<f32>,
    /// See [`firebrick_engine::SamplingParams`].
    pub top_p: Option<f32>,
    /// 0 keeps all tokens.
    pub top_k: Option<u32>,
    /// See [`firebrick_engine::SamplingParams`].
    pub min_p: Option<f32>,
    /// See [`firebrick_engine::SamplingParams`].
    pub repetition_penalty: Option<f32>,
    /// `max_new_tokens`: the default of chat requests, which otherwise may fill the model's length.
    pub max_tokens: Option<u32>,
}

/// Where the model runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Whether it is a GPU.
    pub kind: DeviceKind,
    /// Its name.
    pub name: String,
    /// Memory of the device, 0 if unknown.
    pub memory_total_bytes: u64,
    /// Memory that weights, KV cache and workspace take.
    pub memory_allocated_bytes: u64,
    /// Memory set aside for the model, at least what is allocated.
    pub memory_reserved_bytes: u64,
}

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A graphics card.
    Gpu,
}

/// A loaded model.
pub struct Model {
    /// Names that requests may use; the first is shown and is the label of metrics.
    pub served_names: Vec<String>,
    /// Where it came from: a hub id or a path.
    pub root: String,
    /// Strings to tokens.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt; models without one do not chat.
    pub chat_template: Option<ChatTemplate>,
    /// Variables of the template that requests do not set.
    pub template_defaults: Map<String, Value>,
    /// How it writes reasoning and tool calls.
    pub dialect: Dialect,
    /// Of requests that do not say.
    pub defaults: SamplingDefaults,
    /// How hidden states become a vector where a request does not say.
    pub pooling: Pooling,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<TokenId>,
    /// Prompt and output together, at most.
    pub max_model_len: u32,
    /// Bytes of one token's keys and values.
    pub kv_bytes_per_token: u64,
    /// Devices that share the model.
    pub tensor_parallel_size: u32,
    /// Where it runs.
    pub device: DeviceInfo,
    /// Who generates.
    pub engine: EngineHandle,
    /// What texts may have to match.
    pub grammars: Grammars,
}

impl Model {
    /// The name that is shown.
    pub fn name(&self) -> &str {
        self.served_names.first().map_or("", String::as_str)
    }

    /// Whether requests may use this name for it.
    pub fn is_called(&self, name: &str) -> bool {
        self.served_names.iter().any(|served| served == name)
    }
}

/// How far the server is.
#[derive(Clone)]
pub enum ModelSlot {
    /// Models are on their way.
    Loading,
    /// Serving; this is the first model.
    Ready(Arc<Model>),
    /// A model could not be loaded; the text says why.
    Failed(String),
}

/// A model that an operator wants to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOrder {
    /// A hub id or a path.
    pub model: String,
    /// Names that requests may use; none: as `model`.
    pub served_names: Vec<String>,
    /// Memory that the models in service take.
    pub allocated_bytes: u64,
    /// How many they are.
    pub num_models: usize,
}

/// Loads a model, which may take long, or says why it cannot.
pub type ModelLoader = Arc<dyn Fn(ModelOrder) -> Result<Model, String> + Send + Sync>;

/// Shared by all handlers; clones are the same state.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

struct Inner {
    config: ServerConfig,
    models: ServedModels,
    loader: OnceLock<ModelLoader>,
    changes: tokio::sync::Mutex<()>,
    created: u64,
    draining: AtomicBool,
    paused: AtomicBool,
    active: AtomicUsize,
    idle: Notify,
    unserved: HttpMetrics,
    accounts: Accounts,
    tracer: Option<Tracer>,
    open_requests: OpenRequests,
    responses: ResponseStore,
    ids: IdSource,
    processors: Processors,
    fault: PlantedFault,
}

impl AppState {
    /// A server whose model is still loading.
    pub fn new(config: ServerConfig) -> Self {
        let Limits { responses_max, response_bytes_max, .. } = config.limits;
        let responses = ResponseStore::new(StoreLimits { responses_max, bytes_max: response_bytes_max });
        let accounts = Accounts::new(config.quota, config.api_keys.count());
        let tracer = config.traces.clone().map(|traces| Tracer::start(traces, config.version));
        Self(Arc::new(Inner {
            config,
            models: ServedModels::new(),
            loader: OnceLock::new(),
            changes: tokio::sync::Mutex::new(()),
            created: unix_seconds(),
            draining: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            idle: Notify::new(),
            unserved: HttpMetrics::new(),
            accounts,
            tracer,
            open_requests: OpenRequests::default(),
            responses,
            ids: IdSource::new(),
            processors: Processors::new(),
            fault: PlantedFault::from_environment(),
        }))
    }

    /// What the command line decided.
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// Puts the only model of the command line into service.
    ///
    /// # Panics
    /// When there is one of its names already.
    pub fn set_model(&self, model: Model) {
        self.add_model(model).expect("the only model has no rival");
        self.set_started();
    }

    /// Puts a model into service beside those that are; fails with the reason when one of its names is taken.
    pub fn add_model(&self, model: Model) -> Result<Arc<Model>, String> {
        self.0.models.add(model).map_err(|error| error.message)
    }

    /// Says that all models of the command line are in service, so that the server is ready.
    pub fn set_started(&self) {
        self.0.models.start();
    }

    /// Says that a model cannot be loaded, and why.
    pub fn set_failed(&self, reason: impl Into<String>) {
        self.0.models.fail(reason.into());
    }

    /// Sets what loads models at run time; only the first call has an effect.
    pub fn set_loader(&self, loader: ModelLoader) {
        let _ = self.0.loader.set(loader);
    }

    /// What loads models at run time.
    pub(crate) fn loader(&self) -> Option<ModelLoader> {
        self.0.loader.get().cloned()
    }

    /// The served models.
    pub(crate) fn served(&self) -> &ServedModels {
        &self.0.models
    }

    /// Held while a model is loaded or unloaded, because memory is divided by what is there.
    pub(crate) fn changes(&self) -> &tokio::sync::Mutex<()> {
        &self.0.changes
    }

    /// How far the server is.
    pub fn slot(&self) -> ModelSlot {
        self.0.models.slot()
    }

    /// The models in service, the first one first.
    pub fn models(&self) -> Vec<Arc<Model>> {
        self.0.models.all()
    }

    /// The first model, or 503.
    pub fn model(&self) -> Result<Arc<Model>, ApiError> {
        self.0.models.named(None)
    }

    /// The model under a name that the client gave, or the first one when it gave none.
    pub fn model_named(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        self.0.models.named(name)
    }

    /// Seconds since 1970 when the server started.
    pub fn created(&self) -> u64 {
        self.0.created
    }

    /// Counts a generating request that ended; one that reached no model counts as the first model's.
    pub(crate) fn count_request(&self, model: Option<&Model>, outcome: Outcome, seconds: f64) {
        match self.0.models.http_metrics(model) {
            Some(metrics) => metrics.count(outcome, seconds),
            None => self.0.unserved.count(outcome, seconds),
        }
    }

    /// Counters of requests that came before there was a model.
    pub(crate) fn unserved(&self) -> &HttpMetrics {
        &self.0.unserved
    }

    /// Names for requests.
    pub(crate) fn ids(&self) -> &IdSource {
        &self.0.ids
    }

    /// The way to the collector of traces.
    pub(crate) fn tracer(&self) -> Option<&Tracer> {
        self.0.tracer.as_ref()
    }

    /// Kept responses.
    pub(crate) fn responses(&self) -> &ResponseStore {
        &self.0.responses
    }

    /// What each key has used.
    pub(crate) fn accounts(&self) -> &Accounts {
        &self.0.accounts
    }

    /// The generating requests that the engine has.
    pub(crate) fn open_requests(&self) -> &OpenRequests {
        &self.0.open_requests
    }

    /// Threads for work that computes.
    pub(crate) fn processors(&self) -> &Processors {
        &self.0.processors
    }

    /// The fault that a test has planted into this process, if any.
    pub(crate) fn planted_fault(&self) -> &PlantedFault {
        &self.0.fault
    }

    /// Generating requests that are open.
    pub fn num_active(&self) -> usize {
        self.0.active.load(Ordering::Acquire)
    }

    /// Counts a generating request as open until the guard is dropped; 503 while draining.
    pub fn admit(&self) -> Result<ActiveGuard, ApiError> {
        // Counted before looking, so that a drain either refuses the request or waits for it.
        let before = self.0.active.fetch_add(1, Ordering::AcqRel);
        let guard = ActiveGuard(self.clone());
        self.refuse_while_draining()?;
        let max = self.config().limits.requests_max;
        if before >= max {
            let message = format!("the server has {max} requests open, as many as it may");
            return Err(ApiError::new(ErrorKind::Unavailable, message));
        }
        Ok(guard)
    }

    /// 503 while draining or paused.
    pub fn refuse_while_draining(&self) -> Result<(), ApiError> {
        let message = match (self.is_draining(), self.is_paused()) {
            (true, _) => "the server is shutting down",
            (false, true) => "the server is paused by its operator",
            _ => return Ok(()),
        };
        Err(ApiError::new(ErrorKind::Unavailable, message))
    }

    /// Refuses new generating requests, or accepts them again. Open ones go on.
    pub fn set_paused(&self, paused: bool) {
        self.0.paused.store(paused, Ordering::Release);
    }

    /// Whether an operator has paused the server.
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Acquire)
    }

    /// Stops accepting work: `/ready` answers 503, and so do new generating requests. Open ones go on.
    pub fn begin_drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Whether [`begin_drain`](Self::begin_drain) was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Whether new work is accepted and the engine can do it.
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && !self.is_paused() && self.is_healthy()
    }

    /// Whether the models are loaded and their engines move.
    pub fn is_healthy(&self) -> bool {
        let age_max = self.config().heartbeat_age_max;
        matches!(self.slot(), ModelSlot::Ready(_))
            && self.0.models.staying().iter().all(|model| model.engine.is_healthy(age_max))
    }

    /// Waits until no generating request is open; `false` if some still are after `timeout`.
    pub async fn wait_idle(&self, timeout: Duration) -> bool {
        let idle = async {
            loop {
                let notified = self.0.idle.notified();
                if self.num_active() == 0 {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(timeout, idle).await.is_ok()
    }
}

/// An open generating request.
pub struct ActiveGuard(AppState);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        if self.0.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.0.idle.notify_waiters();
        }
    }
}

/// Seconds since 1970; clients expect creation times.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
