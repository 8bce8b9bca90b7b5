//! What the engine's tests share: a small configuration, and a loop that steps to the end.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use firebrick_engine::{
    Engine, EngineConfig, EventKind, Executor, FinishReason, RequestId, SchedulingPolicy, Script, ScriptedExecutor,
    TokenEvent, TokenId,
};

pub const VOCAB_SIZE: u32 = 1000;

pub fn config() -> EngineConfig {
    EngineConfig {
        block_size: 4,
        max_model_len: 200,
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        max_waiting: 100,
        max_choices: 8,
        vocab_size: VOCAB_SIZE,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        seed: 1,
        hash_key: [3, 4],
    }
}

pub fn executor(config: &EngineConfig, kv_blocks: u32) -> ScriptedExecutor {
    ScriptedExecutor::new(kv_blocks, config.block_size, Script::Hash { vocab_size: VOCAB_SIZE })
}

pub fn engine(config: EngineConfig, kv_blocks: u32) -> Engine<ScriptedExecutor> {
    let executor = executor(&config, kv_blocks);
    Engine::new(config, executor).expect("a valid configuration")
}

/// Runs a future that never waits.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("scripted steps do not wait"),
    }
}

/// Steps until nothing is left and returns all events.
pub fn finish<E: Executor>(engine: &mut Engine<E>) -> Vec<TokenEvent> {
    let mut events = Vec::new();
    while engine.has_work() {
        events.extend(ready(engine.step()).expect("the device works"));
    }
    engine.audit();
    events
}

/// Tokens and end of each choice.
pub type Outputs = BTreeMap<(RequestId, u32), (Vec<TokenId>, Option<FinishReason>)>;

pub fn outputs(events: &[TokenEvent]) -> Outputs {
    let mut outputs = Outputs::new();
    for event in events {
        let (tokens, end) = outputs.entry((event.request, event.index)).or_default();
        assert_eq!(*end, None, "nothing comes after the end");
        match &event.kind {
            EventKind::Scheduled { .. } | EventKind::Prompt(_) => assert!(tokens.is_empty()),
            EventKind::Token { token, .. } => tokens.push(*token),
            EventKind::Finished { reason } => *end = Some(reason.clone()),
        }
    }
    outputs
}
