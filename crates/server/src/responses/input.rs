//! What a response continues: items to the messages of a chat template.

use firebrick_text::{Message, MessageContent};
use serde_json::Value;

use crate::chat_messages::past_call;
use crate::error::ApiError;
use crate::limits::Limits;
use crate::openai;
use crate::parameter::at_most;

use super::request::{InputItem, ResponseInput};

/// The new messages of a request.
pub fn messages_of(input: ResponseInput, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    let items = match input {
        ResponseInput::Text(text) => return Ok(vec![Message::new("user", text)]),
        ResponseInput::Items(items) => items,
    };
    at_most("input", "items", items.len(), limits.messages_max)?;
    let mut conversation = Conversation::default();
    for (index, item) in items.into_iter().enumerate() {
        conversation.add(index, item)?;
    }
    conversation.end_calls();
    Ok(conversation.messages)
}

/// Items so far; calls in a row belong to one message of the assistant.
#[derive(Default)]
struct Conversation {
    messages: Vec<Message>,
    calls: Vec<Value>,
    reasoning: Option<String>,
}

impl Conversation {
    fn add(&mut self, index: usize, item: InputItem) -> Result<(), ApiError> {
        let missing = |field: &str| {
            let name = format!("input[{index}].{field}");
            ApiError::parameter(name.clone(), format!("{name} is missing"))
        };
        match item.r#type.as_deref().unwrap_or("message") {
            "message" => {
                self.end_calls();
                let role = match item.role.ok_or_else(|| missing("role"))? {
                    role if role == "developer" => "system".to_owned(),
                    role => role,
                };
                let content = item.content.ok_or_else(|| missing("content"))?;
                let content = Some(MessageContent::Text(text_of(content, &format!("input[{index}].content"))?));
                let reasoning_content = self.reasoning.take().filter(|_| role == "assistant");
                self.messages.push(Message { role, content, reasoning_content, ..Message::default() });
            }
            "function_call" => {
                let name = item.name.filter(|name| !name.is_empty()).ok_or_else(|| missing("name"))?;
                let id = item.call_id.ok_or_else(|| missing("call_id"))?;
                let arguments = item.arguments.ok_or_else(|| missing("arguments"))?;
                self.calls.push(past_call(&id, &name, Value::String(arguments)));
            }
            "function_call_output" => {
                self.end_calls();
                let id = item.call_id.ok_or_else(|| missing("call_id"))?;
                let output = item.output.ok_or_else(|| missing("output"))?;
                let text = text_of(output, &format!("input[{index}].output"))?;
                self.messages.push(Message { tool_call_id: Some(id), ..Message::new("tool", text) });
            }
            "reasoning" => {
                self.end_calls();
                let parts = item.content.or(item.summary);
                let text = parts.map(|parts| text_of(parts, &format!("input[{index}].content"))).transpose()?;
                self.reasoning = text.filter(|text| !text.is_empty());
            }
            _ => {
                let name = format!("input[{index}].type");
                let message =
                    format!("{name}: supported are message, function_call, function_call_output and reasoning");
                return Err(ApiError::parameter(name, message));
            }
        }
        Ok(())
    }

    /// The calls so far were all of this turn.
    fn end_calls(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let calls = Value::Array(std::mem::take(&mut self.calls));
        match self.messages.last_mut() {
            // What the assistant said before it called.
            Some(last) if last.role == "assistant" && last.tool_calls.is_none() => last.tool_calls = Some(calls),
            _ => self.messages.push(Message {
                role: "assistant".to_owned(),
                reasoning_content: self.reasoning.take(),
                tool_calls: Some(calls),
                ..Message::default()
            }),
        }
    }
}

fn text_of(content: openai::MessageContent, name: &str) -> Result<String, ApiError> {
    let parts = match content {
        openai::MessageContent::Text(text) => return Ok(text),
        openai::MessageContent::Parts(parts) => parts,
    };
    let text = |part: openai::ContentPart| match (part.r#type.as_str(), part.text) {
        ("input_text" | "output_text" | "text" | "reasoning_text" | "summary_text", Some(text)) => Ok(text),
        _ => Err(ApiError::parameter(name, format!("{name}: only parts with text are supported"))),
    };
    Ok(parts.into_iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(items: Value) -> Result<Vec<Message>, ApiError> {
        messages_of(serde_json::from_value(items).expect("valid items"), &Limits::default())
    }

    #[test]
    fn items_become_turns() {
        let call =
            |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}", "id": "fc_1"});
        let turns = messages(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            call("1"), call("2"),
            {"type": "function_call_output", "call_id": "1", "output": "one"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
            call("3"),
        ]));
        let turns = turns.expect("valid");
        let roles: Vec<_> = turns.iter().map(|turn| turn.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "tool", "assistant"]);
        assert_eq!(turns[2].reasoning_content.as_deref(), Some("Hm."));
        assert_eq!(turns[2].tool_calls.as_ref().and_then(Value::as_array).map(Vec::len), Some(2));
        assert_eq!(turns[4].tool_call_id.as_deref(), Some("2"));
    }

    #[test]
    fn faults_name_the_item() {
        for (items, param) in [
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"content": "a"}]), "input[0].role"),
            (json!([{"type": "function_call", "name": "f", "call_id": "1"}]), "input[0].arguments"),
            (json!([{"type": "item_reference"}]), "input[0].type"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content"),
        ] {
            assert_eq!(messages(items).expect_err("wrong").param.as_deref(), Some(param));
        }
    }
}
