//! Messages as chat completions carry them, to messages as chat templates take them.

use firebrick_text::{ContentPart, Message, MessageContent};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::limits::Limits;
use crate::openai::{self, ChatMessage, PastCall};
use crate::parameter::{at_most, refuse_unless_neutral};

const ROLE_BYTES_MAX: usize = 64;

/// Checks and converts a conversation.
pub fn messages_of(messages: Vec<ChatMessage>, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    at_most("messages", "messages", messages.len(), limits.messages_max)?;
    messages.into_iter().enumerate().map(|(index, message)| message_of(index, message, limits)).collect()
}

fn message_of(index: usize, message: ChatMessage, limits: &Limits) -> Result<Message, ApiError> {
    let name = |field: &str| format!("messages[{index}].{field}");
    let role = message.role.filter(|role| !role.is_empty() && role.len() <= ROLE_BYTES_MAX);
    let role = role.ok_or_else(|| {
        let field = name("role");
        ApiError::parameter(field.clone(), format!("{field} must be a name such as system, user or assistant"))
    })?;
    refuse_unless_neutral(&name("function_call"), message.function_call)?;
    let tool_calls = past_calls(message.tool_calls.unwrap_or_default(), &role, &name("tool_calls"), limits)?;
    let reasoning_content = message.reasoning.or(message.reasoning_content);
    let content = match message.content {
        Some(content) => Some(content_of(content, &name("content"))?),
        None if tool_calls.is_some() || (role == "assistant" && reasoning_content.is_some()) => None,
        None => {
            let field = name("content");
            return Err(ApiError::parameter(field.clone(), format!("{field} is missing")));
        }
    };
    let tool_call_id = message.tool_call_id;
    if tool_call_id.is_some() && role != "tool" {
        let field = name("tool_call_id");
        return Err(ApiError::parameter(field.clone(), format!("{field} belongs to messages of the role tool")));
    }
    Ok(Message { role, content, name: message.name, reasoning_content, tool_calls, tool_call_id })
}

/// Calls in the shape that templates take.
fn past_calls(calls: Vec<PastCall>, role: &str, name: &str, limits: &Limits) -> Result<Option<Value>, ApiError> {
    if calls.is_empty() {
        return Ok(None);
    }
    if role != "assistant" {
        return Err(ApiError::parameter(name, format!("{name} belongs to messages of the role assistant")));
    }
    at_most(name, "calls in one message", calls.len(), limits.tools_max)?;
    let call = |(index, call): (usize, PastCall)| {
        let wrong = |what: &str| ApiError::parameter(name, format!("{name}[{index}]: {what}"));
        if call.r#type.as_deref().is_some_and(|kind| kind != "function") {
            return Err(wrong("only the type function is supported"));
        }
        let function = call.function.ok_or_else(|| wrong("function is missing"))?;
        let called = function.name.filter(|name| !name.is_empty()).ok_or_else(|| wrong("function.name is missing"))?;
        let arguments = match function.arguments {
            None | Some(Value::Null) => json!("{}"),
            Some(arguments @ (Value::String(_) | Value::Object(_))) => arguments,
            Some(_) => return Err(wrong("function.arguments must be a JSON object as text")),
        };
        let id = call.id.unwrap_or_default();
        Ok(past_call(&id, &called, arguments))
    };
    calls.into_iter().enumerate().map(call).collect::<Result<_, _>>().map(Some)
}

/// A call as chat templates take it.
pub fn past_call(id: &str, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

fn content_of(content: openai::MessageContent, name: &str) -> Result<MessageContent, ApiError> {
    let parts = match content {
        openai::MessageContent::Text(text) => return Ok(MessageContent::Text(text)),
        openai::MessageContent::Parts(parts) => parts,
    };
    let text_of = |part: openai::ContentPart| match part {
        openai::ContentPart { r#type, text: Some(text) } if r#type == "text" => Ok(ContentPart::Text { text }),
        openai::ContentPart { r#type, .. } if r#type == "text" => {
            Err(ApiError::parameter(name, format!("{name}: a text part needs the field `text`")))
        }
        _ => Err(ApiError::parameter(name, format!("{name}: only parts of type text are supported"))),
    };
    Ok(MessageContent::Parts(parts.into_iter().map(text_of).collect::<Result<_, _>>()?))
}
