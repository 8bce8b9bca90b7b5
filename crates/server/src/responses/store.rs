//! Responses that are kept so that they can be retrieved and continued: in memory, bounded, oldest out first.
//!
//! Every API key has responses of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use firebrick_text::Message;
use serde_json::Value;
use tokio::task::AbortHandle;

use crate::auth::Caller;

/// How much is kept of each API key's responses.
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
    /// By the number of the key.
    kept: Mutex<HashMap<usize, Kept>>,
}

/// The responses of one key.
#[derive(Default)]
struct Kept {
    responses: HashMap<String, (StoredResponse, usize)>,
    /// Oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

impl ResponseStore {
    /// Keeps nothing yet.
    pub fn new(limits: StoreLimits) -> Self {
        Self { limits, kept: Mutex::default() }
    }

    /// Keeps a response. The oldest ones make room, but none that is still being generated; `false` when there is no room
    /// for it all the same.
    pub fn put(&self, caller: Caller, id: &str, response: StoredResponse) -> bool {
        self.lock().entry(caller.number()).or_default().put(id, response, self.limits)
    }

    /// Replaces a response that was being generated. One that was deleted stays deleted, and one that was cancelled
    /// stays so.
    pub fn finish(&self, caller: Caller, id: &str, response: StoredResponse) {
        let mut all = self.lock();
        let Some(kept) = all.get_mut(&caller.number()) else { return };
        if kept.responses.get(id).is_some_and(|(response, _)| response.running.is_some()) {
            kept.put(id, response, self.limits);
        }
    }

    /// A kept response.
    pub fn get(&self, caller: Caller, id: &str) -> Option<StoredResponse> {
        self.lock().get(&caller.number())?.responses.get(id).map(|(response, _)| response.clone())
    }

    /// Ends the generation behind a response, if there is one, and says so in it. Returns the response as it is then.
    pub fn cancel(&self, caller: Caller, id: &str) -> Option<StoredResponse> {
        let mut all = self.lock();
        let (response, _) = all.get_mut(&caller.number())?.responses.get_mut(id)?;
        if let Some(running) = response.running.take() {
            running.abort();
            response.object["status"] = Value::from("cancelled");
        }
        Some(response.clone())
    }

    /// Forgets a response, and ends the generation behind it; `false` if there is none.
    pub fn delete(&self, caller: Caller, id: &str) -> bool {
        let removed = self.lock().get_mut(&caller.number()).and_then(|kept| kept.remove(id));
        if let Some(running) = removed.as_ref().and_then(|response| response.running.as_ref()) {
            running.abort();
        }
        removed.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn put(&mut self, id: &str, response: StoredResponse, limits: StoreLimits) -> bool {
        let size = size_of(&response);
        self.remove(id);
        if size > limits.bytes_max {
            return false;
        }
        self.bytes += size;
        self.order.push_back(id.to_owned());
        self.responses.insert(id.to_owned(), (response, size));
        while self.bytes > limits.bytes_max || self.responses.len() > limits.responses_max {
            // With nothing else to leave out, the new one is.
            let oldest = self.oldest_complete().unwrap_or_else(|| id.to_owned());
            self.remove(&oldest);
        }
        self.responses.contains_key(id)
    }

    fn oldest_complete(&self) -> Option<String> {
        let is_complete =
            |id: &&String| self.responses.get(*id).is_some_and(|(response, _)| response.running.is_none());
        self.order.iter().find(is_complete).cloned()
    }

    fn remove(&mut self, id: &str) -> Option<StoredResponse> {
        let (response, size) = self.responses.remove(id)?;
        self.bytes -= size;
        self.order.retain(|known| known != id);
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

    /// A response with a task behind it that never ends by itself.
    fn running() -> (StoredResponse, tokio::task::JoinHandle<()>) {
        let task = tokio::spawn(std::future::pending());
        (
            StoredResponse {
                running: Some(task.abort_handle()),
                object: serde_json::json!({"status": "in_progress"}),
                ..response(1)
            },
            task,
        )
    }

    #[test]
    fn the_oldest_makes_room() {
        let (store, caller) = (store(2, 1 << 20), Caller::numbered(0));
        ["a", "b", "c"].iter().for_each(|id| assert!(store.put(caller, id, response(1))));
        assert!(
            store.get(caller, "a").is_none() && store.get(caller, "b").is_some() && store.get(caller, "c").is_some()
        );
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let (store, caller) = (store(100, 10_000), Caller::numbered(0));
        for number in 0..50 {
            store.put(caller, &number.to_string(), response(3000));
            assert!(store.lock()[&0].bytes <= 10_000);
        }
        assert!(!store.put(caller, "huge", response(20_000)) && store.get(caller, "huge").is_none());
        let deleted = (0..50).filter(|number| store.delete(caller, &number.to_string())).count();
        assert_eq!(deleted, 3);
        let kept = store.lock();
        assert_eq!((kept[&0].bytes, kept[&0].order.len()), (0, 0));
    }

    #[test]
    fn callers_see_only_their_own_and_displace_nobody_elses() {
        let store = store(2, 1 << 20);
        store.put(Caller::numbered(1), "a", response(1));
        assert!(store.get(Caller::numbered(2), "a").is_none());
        for id in ["b", "c", "d"] {
            assert!(store.put(Caller::numbered(2), id, response(1)));
        }
        assert!(!store.delete(Caller::numbered(2), "a") && store.delete(Caller::numbered(1), "a"));
    }

    #[tokio::test]
    async fn what_is_being_generated_makes_no_room() {
        let (store, caller) = (store(2, 1 << 20), Caller::numbered(0));
        let (first, _first_task) = running();
        assert!(store.put(caller, "first", first));
        for id in ["a", "b"] {
            assert!(store.put(caller, id, response(1)));
        }
        let kept = ["first", "a", "b"].map(|id| store.get(caller, id).is_some());
        assert_eq!(kept, [true, false, true]);
        let (second, _second_task) = running();
        assert!(store.put(caller, "second", second), "b makes room");
        let (third, _third_task) = running();
        assert!(!store.put(caller, "third", third) && !store.put(caller, "c", response(1)));
        store.finish(caller, "first", response(1));
        assert!(store.put(caller, "d", response(1)) && store.get(caller, "first").is_none());
    }

    #[tokio::test]
    async fn whichever_of_an_end_and_a_cancellation_comes_first_stays() {
        let (store, caller) = (store(10, 1 << 20), Caller::numbered(0));
        store.finish(caller, "a", response(1));
        assert!(store.get(caller, "a").is_none(), "it was deleted");
        let (cancelled, task) = running();
        store.put(caller, "a", cancelled);
        assert_eq!(store.cancel(caller, "a").expect("kept").object["status"], "cancelled");
        store.finish(caller, "a", response(1));
        assert_eq!(store.get(caller, "a").expect("kept").object["status"], "cancelled");
        assert!(task.await.expect_err("aborted").is_cancelled());
        let (finished, _task) = running();
        store.put(caller, "b", finished);
        store.finish(caller, "b", response(1));
        assert_eq!(store.cancel(caller, "b").expect("kept").object, "x");
        let (deleted, task) = running();
        store.put(caller, "c", deleted);
        assert!(store.delete(caller, "c"));
        assert!(task.await.expect_err("aborted").is_cancelled());
    }
}
