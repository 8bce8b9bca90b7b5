//! Loading for the server: from a name to the server's `Model`, and what the log says about it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use firebrick::{LoadReport, Loaded, Options};
use firebrick_checkpoint::{GenerationConfig, PlanOptions, SentencePooling, sentence_pooling};
use firebrick_ops::Backend;
use firebrick_server::{
    DeviceInfo, DeviceKind, EngineHandle, EngineState, EngineThreadOptions, Grammars, Model, Pooling, RecordingFile,
    SamplingDefaults, spawn_engine_recorded, spawn_engine_with,
};
use firebrick_text::Dialect;
use serde_json::{Map, Value};

use crate::args::{GenerationConfigSource, ServedArgs};
use crate::failure::Failure;
use crate::loading;
use crate::output::size;
use crate::progress::Bars;

/// Which model to load, how, and under which names.
pub struct Plan {
    name: String,
    options: Options,
    served_names: Vec<String>,
    generation_config: GenerationConfigSource,
    overrides: Option<String>,
    template_defaults: Option<String>,
    record: Option<PathBuf>,
    gathering: Duration,
    tool_call_parser: String,
    reasoning_parser: String,
}

/// What the log says once the model is there.
pub struct Facts {
    report: LoadReport,
    device: DeviceInfo,
    block_size: u32,
    has_chat_template: bool,
    seconds: f64,
}

impl Plan {
    /// From the command line.
    pub fn new(name: String, options: Options, args: &ServedArgs) -> Self {
        let served_names = match &args.served_model_name[..] {
            [] => vec![name.clone()],
            names => names.to_vec(),
        };
        Self {
            name,
            options,
            served_names,
            generation_config: args.generation_config,
            overrides: args.override_generation_config.clone(),
            template_defaults: args.default_chat_template_kwargs.clone(),
            record: None,
            gathering: EngineThreadOptions::default().gathering,
            tool_call_parser: args.tool_call_parser.clone(),
            reasoning_parser: args.reasoning_parser.clone(),
        }
    }

    /// The engine's decisions are to be recorded in this new file.
    pub fn recorded(self, record: Option<PathBuf>) -> Self {
        Self { record, ..self }
    }

    /// How long tokens of a stream may wait for the next ones.
    pub fn gathering(self, gathering: Duration) -> Self {
        Self { gathering, ..self }
    }

    /// Loads the model in `path`; blocks for as long as that takes.
    pub fn load(self, path: &Path, bars: &Bars) -> Result<(Model, Facts), Failure> {
        let started = Instant::now();
        let overrides = self.overrides.as_deref().map(parse_overrides).transpose()?;
        let template_defaults = self.template_defaults.as_deref().map(parse_template_defaults).transpose()?;
        let pooling = pooling(path)?;
        let recording = self.record.as_deref().map(create_recording).transpose()?;
        tracing::info!("loading {}", path.display());
        let loaded = loading::load(path, &self.options, bars)?;
        let device = device_info(&loaded.report);
        let facts = Facts {
            report: loaded.report.clone(),
            device: device.clone(),
            block_size: self.options.block_size,
            has_chat_template: loaded.chat_template.is_some(),
            seconds: started.elapsed().as_secs_f64(),
        };
        let own = match self.generation_config {
            GenerationConfigSource::Auto => defaults(&loaded.generation),
            GenerationConfigSource::Vllm => SamplingDefaults::default(),
        };
        let Loaded { engine, tokenizer, chat_template, eos_token_ids, report, .. } = loaded;
        let dialect = chat_template.as_ref().map_or_else(Dialect::plain, Dialect::of);
        let dialect = dialect.with_tool_parser(&self.tool_call_parser);
        let dialect = dialect.and_then(|dialect| dialect.with_reasoning_parser(&self.reasoning_parser));
        let dialect = dialect.map_err(|error| Failure::Usage(error.to_string()))?;
        let options = EngineThreadOptions::default();
        let inbox_max = options.inbox_max.max(engine.config().max_waiting as usize);
        let threads = EngineThreadOptions { gathering: self.gathering, inbox_max, ..options };
        let engine = match recording {
            Some(file) => spawn_engine_recorded(engine, threads, file),
            None => spawn_engine_with(engine, threads),
        };
        let model = Model {
            served_names: self.served_names,
            root: self.name,
            tokenizer,
            dialect,
            chat_template,
            template_defaults: template_defaults.unwrap_or_default(),
            pooling,
            defaults: overrides.map_or(own.clone(), |overrides| overrides.over(own)),
            eos_token_ids,
            max_model_len: u32::try_from(report.max_model_len).unwrap_or(u32::MAX),
            kv_bytes_per_token: report.plan.kv_bytes_per_token,
            tensor_parallel_size: 1,
            device,
            engine,
            grammars: Grammars::default(),
        };
        Ok((model, facts))
    }
}

impl Facts {
    /// The memory of the device, as measured before the model was loaded.
    pub fn device_memory_bytes(&self) -> u64 {
        self.report.plan.options.memory_bytes
    }

    /// Says what was loaded.
    pub fn log(&self, served: &str) {
        let Self { report, device, block_size, seconds, .. } = self;
        let plan = &report.plan;
        let kv_bytes = u64::from(report.num_blocks) * u64::from(*block_size) * plan.kv_bytes_per_token;
        let kv_tokens = u64::from(report.num_blocks) * u64::from(*block_size);
        let full = kv_tokens / report.max_model_len.max(1) as u64;
        tracing::info!(
            "model {served}: {}, {}, up to {} tokens",
            plan.model,
            report.weights_form(),
            report.max_model_len
        );
        tracing::info!("device {}: {}, tensor parallel size 1", report.backend.name(), device.name);
        tracing::info!("loaded in {seconds:.2} s");
        let kv_dtype = plan.options.kv_dtype;
        tracing::info!("memory: {} of weights, {} of KV cache in {kv_dtype}", size(plan.weight_bytes), size(kv_bytes));
        tracing::info!(
            "KV cache: {} blocks of {block_size} tokens = {kv_tokens} tokens, {full} requests of full length at once",
            report.num_blocks
        );
        let PlanOptions { max_num_seqs, max_num_batched_tokens, .. } = plan.options;
        tracing::info!("a step has up to {max_num_seqs} sequences and {max_num_batched_tokens} tokens");
        if !self.has_chat_template {
            tracing::warn!("the model has no chat template: /v1/completions works, chat needs --chat-template FILE");
        }
    }
}

fn defaults(config: &GenerationConfig) -> SamplingDefaults {
    SamplingDefaults {
        temperature: config.temperature,
        top_p: config.top_p,
        top_k: config.top_k,
        min_p: config.min_p,
        repetition_penalty: config.repetition_penalty,
        max_tokens: config.max_new_tokens,
    }
}

/// As the folder of a model made for vectors says. Else the last token's state, which has seen all others and is what models
/// that generate text know best.
fn pooling(path: &Path) -> Result<Pooling, Failure> {
    let asked = sentence_pooling(path).map_err(|error| Failure::Run(error.to_string()))?;
    Ok(match asked {
        None | Some(SentencePooling::Last) => Pooling::Last,
        Some(SentencePooling::Mean) => Pooling::Mean,
        Some(SentencePooling::Cls) => Pooling::Cls,
    })
}

fn create_recording(path: &Path) -> Result<RecordingFile, Failure> {
    RecordingFile::create(path).map_err(|error| {
        Failure::Run(format!("--record: cannot create {}: {error}; it must be a new file", path.display()))
    })
}

/// The variables that `--default-chat-template-kwargs` names.
fn parse_template_defaults(text: &str) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(text).map_err(|error| {
        let example = r#"'{"enable_thinking": false}'"#;
        Failure::Usage(format!("--default-chat-template-kwargs is no JSON object such as {example}: {error}"))
    })
}

/// The sampling defaults that `--override-generation-config` names.
struct Overrides(SamplingDefaults);

impl Overrides {
    fn over(self, own: SamplingDefaults) -> SamplingDefaults {
        let Self(new) = self;
        SamplingDefaults {
            temperature: new.temperature.or(own.temperature),
            top_p: new.top_p.or(own.top_p),
            top_k: new.top_k.or(own.top_k),
            min_p: new.min_p.or(own.min_p),
            repetition_penalty: new.repetition_penalty.or(own.repetition_penalty),
            max_tokens: new.max_tokens.or(own.max_tokens),
        }
    }
}

fn parse_overrides(text: &str) -> Result<Overrides, Failure> {
    let wrong = |what: &str| Failure::Usage(format!("--override-generation-config: {what}"));
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else {
        return Err(wrong("must be a JSON object such as '{\"temperature\": 0.5}'"));
    };
    let mut defaults = SamplingDefaults::default();
    for (name, value) in fields {
        let number = value.as_f64().map(|number| number as f32);
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        let known = match name.as_str() {
            "temperature" => number.filter(|&t| t >= 0.0).map(|number| defaults.temperature = Some(number)),
            "top_p" => number.filter(|&p| p > 0.0 && p <= 1.0).map(|number| defaults.top_p = Some(number)),
            "top_k" => count.map(|count| defaults.top_k = Some(count)),
            "min_p" => number.filter(|p| (0.0..=1.0).contains(p)).map(|number| defaults.min_p = Some(number)),
            "repetition_penalty" => {
                number.filter(|&p| p > 0.0).map(|number| defaults.repetition_penalty = Some(number))
            }
            "max_new_tokens" => count.filter(|&count| count > 0).map(|count| defaults.max_tokens = Some(count)),
            _ => {
                let known = "temperature, top_p, top_k, min_p, repetition_penalty, max_new_tokens";
                return Err(wrong(&format!("`{name}` is not known; known: {known}")));
            }
        };
        known.ok_or_else(|| wrong(&format!("`{name}` cannot be {value}")))?;
    }
    Ok(Overrides(defaults))
}

fn device_info(report: &LoadReport) -> DeviceInfo {
    let plan = &report.plan;
    let kv_bytes = u64::from(report.num_blocks) * plan.options.block_size as u64 * plan.kv_bytes_per_token;
    let allocated = plan.weight_bytes + kv_bytes;
    let kind = if report.backend == Backend::Cpu { DeviceKind::Cpu } else { DeviceKind::Gpu };
    DeviceInfo {
        kind,
        name: if kind == DeviceKind::Cpu { processor_name() } else { report.backend.name().to_owned() },
        memory_total_bytes: plan.options.memory_bytes,
        memory_allocated_bytes: allocated,
        memory_reserved_bytes: allocated + plan.activation_bytes,
    }
}

fn processor_name() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map_or("processor", |(_, name)| name.trim());
    format!("{name}, {cores} cores")
}

/// Every ten seconds one line about an engine that has work, until it ends.
pub async fn log_stats(engine: EngineHandle) {
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if engine.state() != EngineState::Running {
            return;
        }
        let now = engine.snapshot();
        if now.num_running + now.num_waiting == 0 {
            continue;
        }
        tracing::info!(
            "running: {}, waiting: {}, KV cache in use: {:.1} %, prefix cache hits: {:.1} %, preempted: {}",
            now.num_running,
            now.num_waiting,
            100.0 * now.kv_usage(),
            100.0 * now.prefix_hits as f64 / now.prefix_queries.max(1) as f64,
            now.num_preemptions
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_defaults_can_be_replaced() {
        let overrides = parse_overrides(r#"{"temperature": 0.5, "max_new_tokens": 7}"#).expect("valid");
        let own = SamplingDefaults { temperature: Some(1.0), top_p: Some(0.9), ..SamplingDefaults::default() };
        let merged = overrides.over(own);
        assert_eq!((merged.temperature, merged.top_p, merged.max_tokens), (Some(0.5), Some(0.9), Some(7)));
    }

    #[test]
    fn template_variables_are_a_json_object() {
        let variables = parse_template_defaults(r#"{"enable_thinking": false}"#).expect("valid");
        assert_eq!(variables.get("enable_thinking"), Some(&Value::Bool(false)));
        for text in ["[]", "true", "{"] {
            let Err(refusal) = parse_template_defaults(text) else { panic!("{text} is refused") };
            assert!(refusal.to_string().contains("--default-chat-template-kwargs"), "{refusal}");
        }
    }

    #[test]
    fn unknown_and_impossible_defaults_are_refused_by_name() {
        for (text, part) in [(r#"{"temp": 1}"#, "`temp`"), (r#"{"top_p": 2}"#, "`top_p`"), ("[]", "JSON object")] {
            let Err(refusal) = parse_overrides(text) else { panic!("{text} is refused") };
            assert!(refusal.to_string().contains(part), "{refusal}");
        }
    }
}
