//! The wire format of `/v1/chat/completions`.

use firebrick_text::MessageEvent;

use crate::answer::{AnswerHead, Collected, CollectedChoice};
use crate::choice::{Delta, ReportedToken, TokenLogprob};
use crate::error::ApiError;
use crate::event_frame::EventFrame;
use crate::openai::{
    CallDelta, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatResponse, ChatTokenLogprob,
    ChatTopLogprob, Field, FunctionDelta, ReplyCall, ReplyFunction, ReplyMessage, Usage, VllmStats,
};

const CALL_PREFIX: &str = "call_";

/// The whole answer.
pub fn response(head: AnswerHead, collected: Collected, usage: Usage, stats: VllmStats) -> ChatResponse {
    let Collected { choices, prompts } = collected;
    let choice = |(index, collected): (u32, CollectedChoice)| ChatChoice {
        index,
        logprobs: logprobs(&collected.tokens),
        finish_reason: collected.finish_reason(),
        message: reply(&head, index, &collected),
        token_ids: head.returns_token_ids().then_some(collected.token_ids),
        stop_reason: collected.finish.and_then(|finish| finish.stop_reason),
    };
    let choices = (0..).zip(choices).map(choice).collect();
    let prompt_token_ids = head.prompt_token_ids(0);
    ChatResponse {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        choices,
        usage,
        vllm_stats: stats,
        prompt_token_ids,
        prompt_logprobs: prompts.first().and_then(|prompt| head.report.prompt_logprobs(prompt)),
    }
}

fn reply(head: &AnswerHead, index: u32, collected: &CollectedChoice) -> ReplyMessage {
    let message = &collected.message;
    let call = |(number, name, arguments): (u32, &str, &str)| ReplyCall {
        id: head.call_ids.id(CALL_PREFIX, index, number),
        r#type: "function",
        function: ReplyFunction { name: name.to_owned(), arguments: arguments.to_owned() },
    };
    let tool_calls: Vec<_> = message.calls().map(call).collect();
    let (text, reasoning) = (message.text(), message.reasoning());
    ReplyMessage {
        role: "assistant",
        content: Some(text).filter(|text| !text.is_empty() || tool_calls.is_empty()),
        reasoning_content: reasoning.clone(),
        reasoning,
        tool_calls,
    }
}

/// Writes a streamed chat answer.
pub struct ChatWriter {
    /// Calls begun so far, per choice.
    num_calls: Vec<u32>,
}

impl ChatWriter {
    /// Before the first event.
    pub fn new(head: &AnswerHead) -> Self {
        Self { num_calls: vec![0; head.num_choices as usize] }
    }

    /// Every choice's first chunk.
    pub fn begin(&self, frame: &mut EventFrame) {
        for index in 0..frame.head.num_choices {
            let delta = ChatDelta { role: Some("assistant"), content: Some(String::new()), ..ChatDelta::default() };
            let choice = ChatChunkChoice { index, delta, ..ChatChunkChoice::default() };
            let prompt_token_ids = frame.head.prompt_token_ids(index);
            let chunk = chunk_of(frame.head, vec![choice], frame.chunk_usage());
            frame.event(&ChatChunk { prompt_token_ids, ..chunk });
        }
    }

    /// A chunk that adds to a choice or ends it.
    pub fn add(&mut self, frame: &mut EventFrame, delta: Delta) {
        let mut addition = self.addition(frame.head, delta.index, delta.events);
        let says = addition.content.is_some() || addition.reasoning.is_some() || !addition.tool_calls.is_empty();
        let token_ids = frame.head.token_ids(delta.token_ids);
        if !says && delta.tokens.is_empty() && delta.finish.is_none() && token_ids.is_none() {
            return;
        }
        if !says && !delta.tokens.is_empty() {
            addition.content = Some(String::new());
        }
        let choice = ChatChunkChoice {
            index: delta.index,
            delta: addition,
            logprobs: logprobs(&delta.tokens),
            finish_reason: delta.finish.as_ref().map(|finish| finish.reason),
            stop_reason: delta.finish.map(|finish| finish.stop_reason),
            token_ids,
        };
        frame.event(&chunk_of(frame.head, vec![choice], frame.chunk_usage()));
    }

    fn addition(&mut self, head: &AnswerHead, index: u32, events: Vec<MessageEvent>) -> ChatDelta {
        let mut addition = ChatDelta::default();
        let Some(num_calls) = self.num_calls.get_mut(index as usize) else { return addition };
        for event in events {
            match event {
                MessageEvent::Text(text) => addition.content.get_or_insert_default().push_str(&text),
                MessageEvent::Reasoning(text) => addition.reasoning.get_or_insert_default().push_str(&text),
                MessageEvent::CallBegin { name } => {
                    addition.tool_calls.push(CallDelta {
                        index: *num_calls,
                        id: Some(head.call_ids.id(CALL_PREFIX, index, *num_calls)),
                        r#type: Some("function"),
                        function: FunctionDelta { name: Some(name), arguments: String::new() },
                    });
                    *num_calls += 1;
                }
                MessageEvent::CallArguments(arguments) => match addition.tool_calls.last_mut() {
                    Some(call) => call.function.arguments.push_str(&arguments),
                    None => addition.tool_calls.push(CallDelta {
                        index: num_calls.saturating_sub(1),
                        function: FunctionDelta { name: None, arguments },
                        ..CallDelta::default()
                    }),
                },
                // What was shown of a broken call cannot be taken back.
                MessageEvent::CallEnd | MessageEvent::CallBroken { .. } => {}
            }
        }
        addition.reasoning_content.clone_from(&addition.reasoning);
        addition
    }

    /// The end of the stream.
    pub fn end(&self, frame: &mut EventFrame) {
        if frame.options.include_usage {
            let usage = Some(Some(frame.generation.usage()));
            let stats = Some(frame.generation.stats());
            frame.event(&ChatChunk { vllm_stats: stats, ..chunk_of(frame.head, Vec::new(), usage) });
        }
        frame.done();
    }

    /// The end of a stream that failed.
    pub fn fail(&self, frame: &mut EventFrame, error: &ApiError) {
        frame.event(&error.body());
        frame.done();
    }
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
        prompt_token_ids: None,
    }
}

fn logprobs(tokens: &[ReportedToken]) -> Option<ChatLogprobs> {
    let entry = |token: &ReportedToken| ChatTokenLogprob {
        chosen: top_logprob(&token.chosen),
        top_logprobs: token.top.iter().map(top_logprob).collect(),
    };
    (!tokens.is_empty()).then(|| ChatLogprobs { content: tokens.iter().map(entry).collect() })
}

fn top_logprob(token: &TokenLogprob) -> ChatTopLogprob {
    let TokenLogprob { text, bytes, logprob } = token.clone();
    ChatTopLogprob { token: text, logprob, bytes }
}
