//! Tools for chat templates that know none: they are described in the system message and called in the Hermes format.

use serde_json::Value;

use crate::chat_message::{Message, MessageContent};

const BEFORE: &str = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided \
                      with function signatures within <tools></tools> XML tags:\n<tools>";
const AFTER: &str = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
                     <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
                     <args-json-object>}\n</tool_call>";

/// Writes tools, calls and their results into plain messages.
pub fn describe_tools(messages: Vec<Message>, tools: Option<&Value>) -> Vec<Message> {
    let mut plain: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    if let Some(tools) = tools.and_then(Value::as_array).filter(|tools| !tools.is_empty()) {
        let list: String = tools.iter().map(|tool| format!("\n{tool}")).collect();
        plain.push(Message::new("system", format!("{BEFORE}{list}{AFTER}")));
    }
    for message in messages {
        let text = message.content.as_ref().map(MessageContent::text).unwrap_or_default();
        let described = plain.len() == 1 && message.role == "system" && tools.is_some();
        if described {
            let description = plain[0].content.as_ref().map(MessageContent::text).unwrap_or_default();
            plain[0] = Message::new("system", format!("{text}\n\n{description}"));
        } else if message.role == "tool" {
            answer(&mut plain, &text);
        } else if let Some(calls) = &message.tool_calls {
            let calls: Vec<String> = calls.as_array().into_iter().flatten().map(call).collect();
            let parts = Some(text).filter(|text| !text.is_empty()).into_iter().chain(calls);
            let content = parts.collect::<Vec<_>>().join("\n");
            let content = Some(MessageContent::Text(content));
            plain.push(Message { content, tool_calls: None, ..message });
        } else {
            plain.push(message);
        }
    }
    plain
}

fn call(call: &Value) -> String {
    let function = &call["function"];
    let arguments = &function["arguments"];
    let arguments = arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
    format!("<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call>", function["name"])
}

/// Results in a row are one message, because many templates want user and assistant to alternate.
fn answer(plain: &mut Vec<Message>, text: &str) {
    let result = format!("<tool_response>\n{text}\n</tool_response>");
    if let Some(Message { role, content: Some(MessageContent::Text(content)), .. }) = plain.last_mut()
        && role == "user"
        && content.ends_with("</tool_response>")
    {
        content.push('\n');
        content.push_str(&result);
        return;
    }
    plain.push(Message::new("user", result));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_calls_and_results_become_plain_messages() {
        let tools = json!([{"type": "function", "function": {"name": "now"}}]);
        let call =
            json!([{"id": "1", "type": "function", "function": {"name": "now", "arguments": "{\"zone\":\"utc\"}"}}]);
        let messages = vec![
            Message::new("system", "Be brief."),
            Message::new("user", "Time?"),
            Message { role: "assistant".to_owned(), tool_calls: Some(call), ..Message::default() },
            Message::new("tool", "12:00"),
            Message::new("tool", "13:00"),
        ];
        let plain = describe_tools(messages, Some(&tools));
        let texts: Vec<_> = plain
            .iter()
            .map(|message| (message.role.as_str(), message.content.as_ref().expect("text").text()))
            .collect();
        assert!(texts[0].1.starts_with("Be brief.\n\n# Tools") && texts[0].1.contains("\n{\"type\":\"function\""));
        assert_eq!(texts[2].1, "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\":\"utc\"}}\n</tool_call>");
        let results = "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n13:00\n</tool_response>";
        assert_eq!(texts[3], ("user", results.to_owned()));
        assert_eq!(texts.iter().map(|(role, _)| *role).collect::<Vec<_>>(), ["system", "user", "assistant", "user"]);
    }

    #[test]
    fn without_tools_messages_stay() {
        let messages = vec![Message::new("user", "Hi")];
        assert_eq!(describe_tools(messages.clone(), None), messages);
    }
}
