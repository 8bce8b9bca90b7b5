//! The wire format of `/v1/responses`: the response object and its output items.

use firebrick_text::{Message, MessageContent};
use serde_json::{Map, Value, json};
use tokio::task::AbortHandle;

use crate::answer::{AnswerHead, CollectedChoice};
use crate::auth::Caller;
use crate::chat_messages::past_call;
use crate::choice::Finish;
use crate::error::{ApiError, ErrorKind};
use crate::message::{CallIds, CollectedMessage, MessagePart};
use crate::openai::Usage;
use crate::state::AppState;

use super::store::StoredResponse;

const CALL_PREFIX: &str = "call_";

/// What a request says about the response itself.
#[derive(Clone)]
pub struct ResponseFormat {
    /// Fields of the request that the response repeats.
    pub echo: Map<String, Value>,
    /// Where the response is kept, if it is.
    pub keep: Option<Keep>,
    /// Generate behind an answer that has been given already.
    pub background: bool,
    /// Ids of output items.
    pub item_ids: CallIds,
}

/// Where a response is kept and after which conversation.
#[derive(Clone)]
pub struct Keep {
    /// Whose store it is.
    pub state: AppState,
    /// Whose response it is.
    pub caller: Caller,
    /// The conversation before it, without instructions.
    pub messages: Vec<Message>,
}

impl ResponseFormat {
    /// The response without its outcome: `queued`, `in_progress`, `completed`, `incomplete`, `failed`, `cancelled`.
    pub fn object(&self, head: &AnswerHead, status: &str, output: Vec<Value>, usage: Option<&Usage>) -> Value {
        let mut object = Map::new();
        object.insert("id".to_owned(), json!(head.id));
        object.insert("object".to_owned(), json!("response"));
        object.insert("created_at".to_owned(), json!(head.created));
        object.insert("status".to_owned(), json!(status));
        object.insert("background".to_owned(), json!(self.background));
        object.insert("error".to_owned(), Value::Null);
        object.insert("incomplete_details".to_owned(), Value::Null);
        object.insert("model".to_owned(), json!(head.model));
        object.insert("output".to_owned(), Value::Array(output));
        object.extend(self.echo.clone());
        object.insert("usage".to_owned(), usage.map_or(Value::Null, usage_value));
        if status == "incomplete" {
            object["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        Value::Object(object)
    }

    /// A complete response.
    pub fn finished(&self, head: &AnswerHead, output: Vec<Value>, finish: Option<&Finish>, usage: &Usage) -> Value {
        self.object(head, status_of(finish), output, Some(usage))
    }

    /// A response that could not be generated.
    pub fn failed(&self, head: &AnswerHead, output: Vec<Value>, error: &ApiError) -> Value {
        let mut object = self.object(head, "failed", output, None);
        object["error"] = json!({"code": "server_error", "message": error.message});
        object
    }

    /// The whole answer, kept if it is to be.
    pub fn whole(&self, head: &AnswerHead, choices: Vec<CollectedChoice>, usage: &Usage) -> Value {
        let choice = choices.into_iter().next().unwrap_or_default();
        let finish = choice.finish.as_ref();
        let last = choice.message.parts.len().saturating_sub(1);
        let item = |(index, part): (usize, &MessagePart)| {
            let status = if index == last { status_of(finish) } else { "completed" };
            self.item(head, index as u32, part, status)
        };
        let output = choice.message.parts.iter().enumerate().map(item).collect();
        let object = self.finished(head, output, finish, usage);
        self.store(head, object.clone(), &choice.message);
        object
    }

    /// Keeps a response with what was said.
    pub fn store(&self, head: &AnswerHead, object: Value, message: &CollectedMessage) {
        let Some(Keep { state, caller, messages }) = &self.keep else { return };
        let mut messages = messages.clone();
        messages.push(self.said(head, message));
        let response = StoredResponse { object, messages, running: None };
        if self.background {
            state.responses().finish(*caller, &head.id, response);
        } else {
            state.responses().put(*caller, &head.id, response);
        }
    }

    /// Keeps a response that is about to be generated behind; 503 when there is no room for it.
    pub fn begin(&self, head: &AnswerHead, object: Value, running: AbortHandle) -> Result<(), ApiError> {
        let Some(Keep { state, caller, messages }) = &self.keep else { return Ok(()) };
        let response = StoredResponse { object, messages: messages.clone(), running: Some(running) };
        if state.responses().put(*caller, &head.id, response) {
            return Ok(());
        }
        let message = "there is no room to keep another background response: those that are being generated fill it";
        Err(ApiError::new(ErrorKind::Unavailable, message))
    }

    fn said(&self, head: &AnswerHead, message: &CollectedMessage) -> Message {
        let call = |(number, name, arguments): (u32, &str, &str)| {
            past_call(&call_id(head, number), name, Value::String(arguments.to_owned()))
        };
        let calls: Vec<Value> = message.calls().map(call).collect();
        Message {
            role: "assistant".to_owned(),
            content: Some(MessageContent::Text(message.text())),
            reasoning_content: message.reasoning(),
            tool_calls: (!calls.is_empty()).then_some(Value::Array(calls)),
            ..Message::default()
        }
    }

    /// The id of an output item.
    pub fn item_id(&self, index: u32, part: &MessagePart) -> String {
        let prefix = match part {
            MessagePart::Reasoning(_) => "rs_",
            MessagePart::Text(_) => "msg_",
            MessagePart::Call { .. } => "fc_",
        };
        self.item_ids.id(prefix, 0, index)
    }

    /// One output item; its number is its place in the output.
    pub fn item(&self, head: &AnswerHead, index: u32, part: &MessagePart, status: &str) -> Value {
        let id = self.item_id(index, part);
        match part {
            MessagePart::Reasoning(text) => {
                let content = if text.is_empty() { json!([]) } else { json!([reasoning_part(text)]) };
                json!({
                    "id": id, "type": "reasoning", "status": status,
                    "summary": [], "content": content, "encrypted_content": null,
                })
            }
            MessagePart::Text(text) => {
                let content = if text.is_empty() { json!([]) } else { json!([text_part(text)]) };
                json!({
                    "id": id, "type": "message", "status": status,
                    "role": "assistant", "content": content,
                })
            }
            MessagePart::Call { number, name, arguments } => json!({
                "id": id, "type": "function_call", "status": status,
                "call_id": call_id(head, *number), "name": name, "arguments": arguments,
            }),
        }
    }
}

fn call_id(head: &AnswerHead, number: u32) -> String {
    head.call_ids.id(CALL_PREFIX, 0, number)
}

/// A part of a message.
pub fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// A part of reasoning.
pub fn reasoning_part(text: &str) -> Value {
    json!({"type": "reasoning_text", "text": text})
}

/// `completed`, or `incomplete` where the length ended it.
pub fn status_of(finish: Option<&Finish>) -> &'static str {
    match finish {
        Some(Finish { reason: "length", .. }) => "incomplete",
        _ => "completed",
    }
}

fn usage_value(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    })
}
