//! Responses that are kept so that they can be retrieved and continued: in memory, bounded, oldest out first.
//!
//! Every API key has responses of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use firebrick_text::Message;
use serde_json::Value;
use tokio::task::AbortHandle;

use crate::auth::Caller;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Responses.
    pub responses_max: usize,
    /// Bytes of all of them and of their conversations.
    pub bytes_max: usize,
}

/// A kept response.
#[derive(Clone, Debug)]
pub struct StoredResponse {
    /// As it is retrieved.
    pub object: Value,
    /// The conversation up to and with it, without instructions.
    pub messages: Vec<Message>,
    /// Ends the generation behind it, if there is one.
    pub running: Option<AbortHandle>,
}

/// All kept responses.
pub struct ResponseStore {
    limits: StoreLimits,
    kept: Mutex<Kept>,
}

type Key = (usize, String);

#[derive(Default)]
struct Kept {
    responses: HashMap<Key, (StoredResponse, usize)>,
    /// Oldest first.
    order: VecDeque<Key>,
    bytes: usize,
}

impl ResponseStore {
    /// Keeps nothing yet.
    pub fn new(limits: StoreLimits) -> Self {
        Self { limits, kept: Mutex::default() }
    }

    /// Keeps a response, or replaces it under the same id.
    pub fn put(&self, caller: Caller, id: &str, response: StoredResponse) {
        let key = (caller.number(), id.to_owned());
        let size = size_of(&response);
        let mut kept = self.lock();
        kept.remove(&key);
        if size > self.limits.bytes_max {
            return;
        }
        kept.bytes += size;
        kept.order.push_back(key.clone());
        kept.responses.insert(key, (response, size));
        while kept.bytes > self.limits.bytes_max || kept.responses.len() > self.limits.responses_max {
            let Some(oldest) = kept.order.front().cloned() else { return };
            kept.remove(&oldest);
        }
    }

    /// Replaces a response that is still kept; one that was deleted stays deleted.
    pub fn update(&self, caller: Caller, id: &str, response: StoredResponse) {
        if self.get(caller, id).is_some() {
            self.put(caller, id, response);
        }
    }

    /// A kept response.
    pub fn get(&self, caller: Caller, id: &str) -> Option<StoredResponse> {
        self.lock().responses.get(&(caller.number(), id.to_owned())).map(|(response, _)| response.clone())
    }

    /// Forgets a response; `false` if there is none.
    pub fn delete(&self, caller: Caller, id: &str) -> bool {
        self.lock().remove(&(caller.number(), id.to_owned())).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn remove(&mut self, key: &Key) -> Option<StoredResponse> {
        let (response, size) = self.responses.remove(key)?;
        self.bytes -= size;
        self.order.retain(|known| known != key);
        Some(response)
    }
}

/// Texts count; the rest is small change per message.
fn size_of(response: &StoredResponse) -> usize {
    const OVERHEAD: usize = 256;
    let text = |message: &Message| {
        let content = message.content.as_ref().map_or(0, |content| content.text().len());
        let reasoning = message.reasoning_content.as_ref().map_or(0, String::len);
        let calls = message.tool_calls.as_ref().map_or(0, |calls| calls.to_string().len());
        content + reasoning + calls + OVERHEAD
    };
    response.object.to_string().len() + response.messages.iter().map(text).sum::<usize>() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(bytes: usize) -> StoredResponse {
        StoredResponse { object: Value::from("x".repeat(bytes)), messages: Vec::new(), running: None }
    }

    fn store(responses_max: usize, bytes_max: usize) -> ResponseStore {
        ResponseStore::new(StoreLimits { responses_max, bytes_max })
    }

    #[test]
    fn the_oldest_makes_room() {
        let (store, caller) = (store(2, 1 << 20), Caller::numbered(0));
        ["a", "b", "c"].iter().for_each(|id| store.put(caller, id, response(1)));
        assert!(
            store.get(caller, "a").is_none() && store.get(caller, "b").is_some() && store.get(caller, "c").is_some()
        );
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let (store, caller) = (store(100, 10_000), Caller::numbered(0));
        for number in 0..50 {
            store.put(caller, &number.to_string(), response(3000));
            assert!(store.lock().bytes <= 10_000);
        }
        store.put(caller, "huge", response(20_000));
        assert!(store.get(caller, "huge").is_none());
        let deleted = (0..50).filter(|number| store.delete(caller, &number.to_string())).count();
        assert_eq!(deleted, 3);
        let kept = store.lock();
        assert_eq!((kept.bytes, kept.order.len()), (0, 0));
    }

    #[test]
    fn callers_see_only_their_own() {
        let store = store(10, 1 << 20);
        store.put(Caller::numbered(1), "a", response(1));
        assert!(store.get(Caller::numbered(2), "a").is_none());
        assert!(!store.delete(Caller::numbered(2), "a") && store.delete(Caller::numbered(1), "a"));
    }

    #[test]
    fn a_deleted_response_stays_deleted() {
        let (store, caller) = (store(10, 1 << 20), Caller::numbered(0));
        store.update(caller, "a", response(1));
        assert!(store.get(caller, "a").is_none());
    }
}
