//! The wire format of `/v1/chat/completions`.

use crate::answer::{AnswerHead, CollectedChoice};
use crate::choice::{Delta, ReportedToken};
use crate::openai::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatResponse, ChatTokenLogprob, ChatTopLogprob,
    Field, ReplyMessage, Usage, VllmStats,
};

/// The whole answer.
pub fn response(head: AnswerHead, choices: Vec<CollectedChoice>, usage: Usage, stats: VllmStats) -> ChatResponse {
    let choice = |(index, collected): (u32, CollectedChoice)| ChatChoice {
        index,
        logprobs: logprobs(&collected.tokens),
        finish_reason: collected.finish_reason(),
        stop_reason: collected.finish.and_then(|finish| finish.stop_reason),
        message: ReplyMessage { role: "assistant", content: collected.text },
    };
    ChatResponse {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        choices: (0..).zip(choices).map(choice).collect(),
        usage,
        vllm_stats: stats,
    }
}

/// A choice's first chunk.
pub fn opening(head: &AnswerHead, index: u32, usage: Field<Usage>) -> ChatChunk<'_> {
    let delta = ChatDelta { role: Some("assistant"), content: Some(String::new()) };
    let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None };
    chunk_of(head, vec![choice], usage)
}

/// A chunk that adds to a choice or ends it.
pub fn chunk(head: &AnswerHead, delta: Delta, usage: Field<Usage>) -> ChatChunk<'_> {
    let content = (!delta.text.is_empty() || delta.token.is_some()).then_some(delta.text);
    let choice = ChatChunkChoice {
        index: delta.index,
        delta: ChatDelta { role: None, content },
        logprobs: logprobs(delta.token.as_slice()),
        finish_reason: delta.finish.as_ref().map(|finish| finish.reason),
        stop_reason: delta.finish.map(|finish| finish.stop_reason),
    };
    chunk_of(head, vec![choice], usage)
}

/// The last chunk of a stream whose client asked for usage.
pub fn usage_chunk(head: &AnswerHead, usage: Usage, stats: VllmStats) -> ChatChunk<'_> {
    ChatChunk { vllm_stats: Some(stats), ..chunk_of(head, Vec::new(), Some(Some(usage))) }
}

fn chunk_of(head: &AnswerHead, choices: Vec<ChatChunkChoice>, usage: Field<Usage>) -> ChatChunk<'_> {
    ChatChunk {
        id: &head.id,
        object: "chat.completion.chunk",
        created: head.created,
        model: &head.model,
        choices,
        usage,
        vllm_stats: None,
    }
}

fn logprobs(tokens: &[ReportedToken]) -> Option<ChatLogprobs> {
    let entry = |token: &ReportedToken| ChatTokenLogprob {
        chosen: top_logprob(&token.text, token.logprob),
        top_logprobs: token.top.iter().map(|(text, logprob)| top_logprob(text, *logprob)).collect(),
    };
    (!tokens.is_empty()).then(|| ChatLogprobs { content: tokens.iter().map(entry).collect() })
}

fn top_logprob(text: &str, logprob: f32) -> ChatTopLogprob {
    ChatTopLogprob { token: text.to_owned(), logprob, bytes: text.as_bytes().to_vec() }
}
