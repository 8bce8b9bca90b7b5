//! Traces to a collector: OTLP over HTTP in JSON, from a thread of its own.
//!
//! Nothing waits for the collector. Traces queue in a channel of fixed size, and what does not fit is counted and
//! dropped; a collector that is gone costs one log line a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::request_id::IdSource;
use crate::request_trace::EndedTrace;

/// Traces on their way to the thread.
const QUEUE_MAX: usize = 4096;
/// Traces in one message to the collector.
const BATCH_MAX: usize = 256;
/// How long a trace may wait for others.
const BATCH_TIME: Duration = Duration::from_secs(1);
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    /// A collector such as `http://localhost:4318`; without a path, `/v1/traces` is meant.
    pub endpoint: String,
    /// Headers for the collector, such as its key.
    pub headers: Vec<(String, String)>,
    /// `service.name` of every span.
    pub service_name: String,
}

impl TraceConfig {
    fn url(&self) -> String {
        let endpoint = self.endpoint.trim_end_matches('/');
        let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
        if host.contains('/') { endpoint.to_owned() } else { format!("{endpoint}/v1/traces") }
    }
}

enum Message {
    Trace(Box<EndedTrace>),
    /// Everything so far is to be sent, and then this is to be told.
    Flush(SyncSender<()>),
}

/// The way to the thread; clones share it.
#[derive(Clone)]
pub(crate) struct Tracer {
    messages: SyncSender<Message>,
    counts: Arc<Counts>,
}

/// What became of traces.
#[derive(Default)]
pub(crate) struct Counts {
    pub exported: AtomicU64,
    pub dropped: AtomicU64,
}

impl Tracer {
    /// Starts the thread.
    pub fn start(config: TraceConfig, version: &'static str) -> Self {
        let (messages, inbox) = sync_channel(QUEUE_MAX);
        let counts = Arc::new(Counts::default());
        let exporter = Exporter::new(config, version, counts.clone());
        let thread = std::thread::Builder::new().name("traces".to_owned()).spawn(move || exporter.run(&inbox));
        thread.expect("a thread for traces can be started at start-up");
        Self { messages, counts }
    }

    /// Hands a trace over, or drops it where the queue is full.
    pub fn export(&self, trace: EndedTrace) {
        if trace.is_wanted() && self.messages.try_send(Message::Trace(Box::new(trace))).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was handed over has been sent, but no longer than `timeout`. Blocks.
    pub fn flush(&self, timeout: Duration) {
        let (told, done) = sync_channel(1);
        if self.messages.try_send(Message::Flush(told)).is_ok() {
            // Too late is as good as lost: the process is about to end.
            let _ = done.recv_timeout(timeout);
        }
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

struct Exporter {
    url: String,
    headers: Vec<(String, String)>,
    resource: Value,
    scope: Value,
    agent: ureq::Agent,
    ids: IdSource,
    began: (Instant, SystemTime),
    counts: Arc<Counts>,
    complained: Option<Instant>,
}

impl Exporter {
    fn new(config: TraceConfig, version: &'static str, counts: Arc<Counts>) -> Self {
        let agent = ureq::Agent::config_builder().timeout_global(Some(COLLECTOR_TIMEOUT)).build();
        let service = json!({"key": "service.name", "value": {"stringValue": config.service_name}});
        let version = json!({"name": "firebrick", "version": version});
        Self {
            url: config.url(),
            headers: config.headers,
            resource: json!({"attributes": [service]}),
            scope: version,
            agent: agent.into(),
            ids: IdSource::new(),
            began: (Instant::now(), SystemTime::now()),
            counts,
            complained: None,
        }
    }

    fn run(mut self, inbox: &Receiver<Message>) {
        while let Ok(first) = inbox.recv() {
            let deadline = Instant::now() + BATCH_TIME;
            let (mut batch, mut told) = (Vec::new(), Vec::new());
            let mut next = Ok(first);
            loop {
                match next {
                    Ok(Message::Trace(trace)) => batch.push(*trace),
                    Ok(Message::Flush(sender)) => told.push(sender),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
                if batch.len() >= BATCH_MAX || !told.is_empty() {
                    break;
                }
                next = inbox.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            self.send(&batch);
            for sender in told {
                // Whoever has stopped waiting needs no answer.
                let _ = sender.try_send(());
            }
        }
    }

    fn send(&mut self, batch: &[EndedTrace]) {
        if batch.is_empty() {
            return;
        }
        let spans: Vec<Value> = batch.iter().flat_map(|trace| self.spans(trace)).collect();
        let body = json!({"resourceSpans": [{
            "resource": self.resource,
            "scopeSpans": [{"scope": self.scope, "spans": spans}],
        }]});
        let mut request = self.agent.post(&self.url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let count = batch.len() as u64;
        match request.send_json(&body) {
            Ok(_) => {
                self.counts.exported.fetch_add(count, Ordering::Relaxed);
            }
            Err(error) => {
                self.counts.dropped.fetch_add(count, Ordering::Relaxed);
                self.complain(&error);
            }
        }
    }

    fn spans(&self, trace: &EndedTrace) -> Vec<Value> {
        let (instant, system) = self.began;
        let since_1970 = system.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = |time: Instant| {
            let after = since_1970 + time.saturating_duration_since(instant);
            after.saturating_sub(instant.saturating_duration_since(time)).as_nanos()
        };
        trace.spans(&|| self.ids.next(), &nanoseconds)
    }

    fn complain(&mut self, error: &ureq::Error) {
        const AT_MOST_EVERY: Duration = Duration::from_secs(60);
        if self.complained.is_none_or(|time| time.elapsed() >= AT_MOST_EVERY) {
            self.complained = Some(Instant::now());
            tracing::warn!(%error, "traces cannot be sent to the collector; they are dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_path_gets_the_usual_one() {
        let url = |endpoint: &str| {
            let (endpoint, service_name) = (endpoint.to_owned(), String::new());
            TraceConfig { endpoint, headers: Vec::new(), service_name }.url()
        };
        assert_eq!(url("http://localhost:4318"), "http://localhost:4318/v1/traces");
        assert_eq!(url("http://localhost:4318/"), "http://localhost:4318/v1/traces");
        assert_eq!(url("https://a.example/x/v1/traces"), "https://a.example/x/v1/traces");
    }
}
