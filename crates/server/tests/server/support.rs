//! A real server on a real port, with a scripted model, and a client that shows the bytes.

use std::future::Future;
use std::time::{Duration, Instant};

use firebrick_engine::{Batch, Engine, EngineConfig, Executor, SchedulingPolicy, Script, ScriptedExecutor};
use firebrick_server::{
    AppState, DeviceInfo, DeviceKind, EngineHandle, EngineThreadOptions, Grammars, Listener, Model, Pooling,
    SamplingDefaults, ServerConfig, listen, serve, spawn_engine_with,
};
use firebrick_text::{ChatTemplate, Dialect, SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// The end-of-sequence token of the test tokenizer.
pub const END: u32 = 256;
/// Size of the test tokenizer's vocabulary: 256 bytes and three special tokens.
pub const VOCAB: u32 = 259;

/// Byte-level, without merges: one token per byte.
pub fn tokenizer() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let mut next = 256;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let character = if printable { char::from(byte) } else { char::from_u32(next).expect("a letter") };
        next += u32::from(!printable);
        vocab.insert(character.to_string(), json!(byte));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(256, "<|end|>"), special(257, "<|user|>"), special(258, "<|assistant|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": []},
    });
    Tokenizer::from_bytes(document.to_string().as_bytes()).expect("the test tokenizer is valid")
}

const TEMPLATE: &str = "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}{% endfor %}\
                        {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// The tokens of a text, then the end.
pub fn says(text: &str) -> Script {
    Script::Tokens(text.bytes().map(u32::from).chain([END]).collect())
}

/// A text without an end.
pub fn repeats(letter: u8) -> Script {
    Script::Tokens(vec![letter.into()])
}

/// The scripted executor at a chosen speed; a step may also hang or panic.
pub struct PacedExecutor {
    inner: ScriptedExecutor,
    step_ms: u64,
    panic_at: Option<u64>,
    steps: u64,
}

impl Executor for PacedExecutor {
    fn kv_blocks(&self) -> u32 {
        self.inner.kv_blocks()
    }

    fn execute(&mut self, batch: &Batch) -> impl Future<Output = firebrick_engine::StepResult> + 'static {
        self.steps += 1;
        assert!(self.panic_at != Some(self.steps), "a planned panic");
        std::thread::sleep(Duration::from_millis(self.step_ms));
        // The script draws even at temperature 0; a model would not.
        let mut batch = batch.clone();
        batch.samples.iter_mut().filter(|row| row.params.temperature == 0.0).for_each(|row| row.seed = 0);
        std::future::ready(self.inner.run(&batch))
    }
}

/// How a test server differs from the usual one.
pub struct Setup {
    pub script: Script,
    pub step_ms: u64,
    pub blocks: u32,
    pub max_waiting: u32,
    pub max_num_seqs: u32,
    pub max_model_len: u32,
    pub options: EngineThreadOptions,
    pub config: ServerConfig,
    pub defaults: SamplingDefaults,
    pub pooling: Pooling,
    pub template: bool,
    pub template_defaults: Map<String, Value>,
    pub dialect: Dialect,
    pub fail_at: Option<u64>,
    pub panic_at: Option<u64>,
    pub not_finite_one_in: Option<u64>,
    pub prefix_caching: bool,
    pub policy: SchedulingPolicy,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            script: says("Hello world"),
            step_ms: 0,
            blocks: 4096,
            max_waiting: 4096,
            max_num_seqs: 256,
            max_model_len: 4096,
            options: EngineThreadOptions::default(),
            config: ServerConfig { log_requests: false, ..ServerConfig::default() },
            defaults: SamplingDefaults::default(),
            pooling: Pooling::Last,
            template: true,
            template_defaults: Map::new(),
            dialect: Dialect::plain(),
            fail_at: None,
            panic_at: None,
            not_finite_one_in: None,
            prefix_caching: false,
            policy: SchedulingPolicy::Fcfs,
        }
    }
}

impl Setup {
    /// Its engine on a thread of its own.
    pub fn engine(&self) -> EngineHandle {
        let config = EngineConfig {
            block_size: 16,
            max_model_len: self.max_model_len,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: 2048,
            max_waiting: self.max_waiting,
            max_choices: 128,
            vocab_size: VOCAB,
            enable_prefix_caching: self.prefix_caching,
            enable_chunked_prefill: true,
            policy: self.policy,
            seed: 1,
            hash_key: [1, 2],
        };
        let mut inner = ScriptedExecutor::new(self.blocks, 16, self.script.clone());
        if let Some(step) = self.fail_at {
            inner = inner.failing_at(step);
        }
        if let Some(one_in) = self.not_finite_one_in {
            inner = inner.with_not_finite(one_in);
        }
        let executor = PacedExecutor { inner, step_ms: self.step_ms, panic_at: self.panic_at, steps: 0 };
        let engine = Engine::new(config, executor).expect("the test configuration is valid");
        spawn_engine_with(engine, self.options.clone())
    }

    /// A model under these names.
    pub fn model(&self, names: &[&str], engine: EngineHandle) -> Model {
        let template = ChatTemplate::new(TEMPLATE, SpecialTokens::default()).expect("the test template is valid");
        Model {
            served_names: names.iter().map(|&name| name.to_owned()).collect(),
            root: "/models/tiny".to_owned(),
            tokenizer: tokenizer(),
            chat_template: self.template.then_some(template),
            template_defaults: self.template_defaults.clone(),
            dialect: self.dialect.clone(),
            defaults: self.defaults.clone(),
            pooling: self.pooling,
            eos_token_ids: vec![END],
            max_model_len: self.max_model_len,
            kv_bytes_per_token: 64,
            tensor_parallel_size: 1,
            device: DeviceInfo {
                kind: DeviceKind::Cpu,
                name: "scripted".to_owned(),
                memory_total_bytes: 4 << 30,
                memory_allocated_bytes: 1 << 30,
                memory_reserved_bytes: 2 << 30,
            },
            engine,
            grammars: Grammars::default(),
        }
    }
}

/// A running server; stops when dropped.
pub struct Server {
    pub port: u16,
    pub state: AppState,
    pub engine: EngineHandle,
    _stop: oneshot::Sender<()>,
}

impl Server {
    pub async fn start(setup: Setup) -> Self {
        let server = Self::start_loading(&setup).await;
        server.load(&setup);
        server
    }

    /// The port is open, the model is not there.
    pub async fn start_loading(setup: &Setup) -> Self {
        Self::start_on(listen(([127, 0, 0, 1], 0).into()).expect("a free port"), setup)
    }

    pub fn start_on(listener: TcpListener, setup: &Setup) -> Self {
        let port = listener.local_addr().expect("bound").port();
        Self::start_behind(listener.into(), port, setup)
    }

    /// On any kind of listener; only a TCP port without TLS can be asked through [`Server::send`].
    pub fn start_behind(listener: Listener, port: u16, setup: &Setup) -> Self {
        let state = AppState::new(setup.config.clone());
        let engine = setup.engine();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            let _ = stopped.await;
        };
        tokio::spawn(serve(listener, state.clone(), shutdown));
        Self { port, state, engine, _stop: stop }
    }

    pub fn load(&self, setup: &Setup) {
        self.state.set_model(setup.model(&["tiny", "org/tiny"], self.engine.clone()));
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes()).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"").await
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.open(method, path, headers, body).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes)).await;
        // A reset after an early answer still leaves the answer.
        let read = read.expect("an answer within a minute");
        assert!(!bytes.is_empty(), "no answer: {read:?}");
        Reply::parse(&bytes)
    }

    /// Sends a request and leaves the answer to the caller.
    pub async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("the server listens");
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        // A server may answer and close before it has read everything.
        let _ = stream.write_all(body).await;
        stream
    }

    pub async fn open_post(&self, path: &str, body: &Value) -> TcpStream {
        self.open("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes()).await
    }

    /// Waits until nothing runs and no block is in use.
    pub async fn wait_all_free(&self, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let snapshot = self.engine.snapshot();
            if snapshot.num_running + snapshot.num_waiting + snapshot.blocks_used == 0 && self.state.num_active() == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "still busy: {snapshot:?}, {} active", self.state.num_active());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many sequences run.
    pub async fn wait_running(&self, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.engine.snapshot().num_running < count {
            assert!(Instant::now() < deadline, "not running: {:?}", self.engine.snapshot());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The value of a metric, by the beginning of its line.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let line = text.lines().find(|line| line.starts_with(series));
        let line = line.unwrap_or_else(|| panic!("no series {series}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    }
}

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no whole head in {text:?}"));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = &bytes[end + 4..];
        let body = if chunked { unchunk(body) } else { body.to_vec() };
        Self { status: status.expect("a status line"), headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The events of a stream: JSON values, and the text `[DONE]` at the end.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"), "{}", self.text());
        let text = self.text();
        let events = text.strip_suffix("\n\n").expect("a blank line ends the stream").split("\n\n");
        let data = events.map(|event| event.strip_prefix("data: ").expect("every event is data"));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
    }

    /// The events of a stream whose events have names, which their data repeats.
    pub fn named_events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"), "{}", self.text());
        let text = self.text();
        let events = text.strip_suffix("\n\n").expect("a blank line ends the stream").split("\n\n");
        let event = |event: &str| {
            let (name, data) = event.split_once('\n').expect("a name and data");
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            data
        };
        events.map(event).collect()
    }

    /// The text that a chat stream adds up to.
    pub fn streamed_text(&self) -> String {
        let events = self.events();
        let contents = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        contents.collect()
    }

    /// Checks OpenAI's error shape and returns the message and the parameter.
    pub fn error(&self) -> (String, Option<String>) {
        let body = self.json();
        let error = &body["error"];
        assert_eq!(error["code"], self.status, "{body}");
        assert!(error["type"].as_str().is_some_and(|kind| kind.ends_with("Error")), "{body}");
        let message = error["message"].as_str().expect("a message").to_owned();
        (message, error["param"].as_str().map(str::to_owned))
    }
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(size) = size.filter(|&size| size > 0 && end + 2 + size <= body.len()) else { break };
        whole.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = body.get(end + 2 + size + 2..).unwrap_or_default();
    }
    whole
}

/// A short chat request.
pub fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0});
    merge(&mut body, extra);
    body
}

/// A short completion request.
pub fn completion(extra: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "Once", "temperature": 0});
    merge(&mut body, extra);
    body
}

fn merge(body: &mut Value, extra: Value) {
    let Value::Object(extra) = extra else { panic!("extra fields are an object") };
    body.as_object_mut().expect("an object").extend(extra);
}

/// Replaces what differs from run to run.
pub fn normalized(mut body: Value) -> Value {
    for (name, value) in [("id", json!("ID")), ("created", json!(0)), ("vllm_stats", json!("STATS"))] {
        if let Some(field) = body.get_mut(name) {
            *field = value;
        }
    }
    body
}
