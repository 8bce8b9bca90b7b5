//! The generating requests that the engine has, for operators. Texts are never kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::telemetry::RequestContext;
use crate::validate::ValidatedRequest;

/// Every open request by its id.
#[derive(Default)]
pub(crate) struct OpenRequests(Mutex<HashMap<Arc<str>, Entry>>);

struct Entry {
    arrived: Instant,
    kind: &'static str,
    model: String,
    prompt_tokens: u64,
    max_tokens: u32,
    n: u32,
}

/// One open request as `/admin/requests` shows it.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct OpenRequestInfo {
    /// Its id in the log.
    id: String,
    /// The kind of request, such as `chat completion`.
    kind: &'static str,
    /// The served name that was asked for.
    model: String,
    /// Seconds since it arrived.
    age_seconds: f64,
    /// Tokens of its prompts.
    prompt_tokens: u64,
    /// Tokens to generate at most, per choice.
    max_tokens: u32,
    /// Choices per prompt.
    n: u32,
}

impl OpenRequests {
    /// Takes note of a request on its way to the engine.
    pub fn insert(&self, context: &RequestContext, kind: &'static str, model: &str, request: &ValidatedRequest) {
        let entry = Entry {
            arrived: context.arrived,
            kind,
            model: model.to_owned(),
            prompt_tokens: request.prompt_tokens(),
            max_tokens: request.max_tokens(),
            n: request.n(),
        };
        self.lock().insert(context.id.clone(), entry);
    }

    /// Forgets a request that has ended.
    pub fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Vec<OpenRequestInfo> {
        let mut list: Vec<OpenRequestInfo> = self.lock().iter().map(|(id, entry)| entry.info(id)).collect();
        list.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        list
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn info(&self, id: &str) -> OpenRequestInfo {
        OpenRequestInfo {
            id: id.to_owned(),
            kind: self.kind,
            model: self.model.clone(),
            age_seconds: self.arrived.elapsed().as_secs_f64(),
            prompt_tokens: self.prompt_tokens,
            max_tokens: self.max_tokens,
            n: self.n,
        }
    }
}
