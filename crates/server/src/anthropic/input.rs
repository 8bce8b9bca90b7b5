//! A request of the Messages API to what every front door makes.

use firebrick_text::{Message, MessageContent};
use serde_json::{Map, Value, json};

use crate::auth::Caller;
use crate::body::refuse_others;
use crate::chat_messages::past_call;
use crate::error::ApiError;
use crate::limits::Limits;
use crate::message::MessageDraft;
use crate::openai::{JsonSchemaFormat, Loose, OneOrMany, ResponseFormat, SamplingFields, ToolFunction};
use crate::parameter::{at_most, refuse_unless_neutral};
use crate::prompt::{Conversation, Source};
use crate::routes::set_reasoning_effort;
use crate::tool_use::{OfferedTool, ToolChoice, ToolUse};
use crate::validate::Draft;

use super::request::{
    AnthropicTool, AnthropicToolChoice, Block, Blocks, ContextEdit, ContextManagement, CountTokensRequest,
    MessagesRequest, OutputConfig, OutputFormat, Thinking, Turn,
};

/// A request for an answer.
pub fn draft(caller: Caller, body: MessagesRequest, limits: &Limits) -> Result<Draft, ApiError> {
    refuse_unless_neutral("container", body.container)?;
    if body.max_tokens.is_none() {
        return Err(ApiError::parameter("max_tokens", "`max_tokens` is missing"));
    }
    let OutputConfig { format, effort } = body.output_config.unwrap_or_default();
    let response_format = format.or(body.output_format).map(response_format).transpose()?;
    let sampling = SamplingFields {
        response_format,
        model: body.model,
        max_tokens: body.max_tokens,
        temperature: body.temperature,
        top_p: body.top_p,
        top_k: body.top_k,
        stop: body.stop_sequences.map(OneOrMany),
        stream: body.stream,
        cache_salt: body.cache_salt,
        ..SamplingFields::default()
    };
    let asked = Asked {
        messages: body.messages,
        system: body.system,
        tools: body.tools,
        tool_choice: body.tool_choice,
        thinking: body.thinking,
        effort,
        mcp_servers: body.mcp_servers,
        context_management: body.context_management,
    };
    let (mut conversation, message) = asked.into_conversation(limits)?;
    // What the request says about thinking in the usual way stands.
    for (name, value) in body.chat_template_kwargs.unwrap_or_default() {
        conversation.template_variables.entry(name).or_insert(value);
    }
    Ok(Draft {
        caller,
        source: Source::Chat(conversation),
        sampling,
        logprobs: None,
        echo: false,
        pooling: None,
        message: Some(message),
        default_max_tokens: None,
    })
}

fn response_format(format: OutputFormat) -> Result<ResponseFormat, ApiError> {
    match format {
        OutputFormat { r#type, schema: Some(schema) } if r#type == "json_schema" => {
            let json_schema = Some(JsonSchemaFormat { schema: Some(schema), ..JsonSchemaFormat::default() });
            Ok(ResponseFormat { r#type, json_schema, ..ResponseFormat::default() })
        }
        _ => Err(ApiError::parameter("output_config", "the output format must be json_schema with a schema")),
    }
}

/// A conversation whose tokens are to be counted, and the name of its model.
pub fn count_draft(body: CountTokensRequest, limits: &Limits) -> Result<(Option<String>, Source), ApiError> {
    let asked = Asked {
        messages: body.messages,
        system: body.system,
        tools: body.tools,
        tool_choice: body.tool_choice,
        thinking: body.thinking,
        effort: body.output_config.and_then(|config| config.effort),
        mcp_servers: body.mcp_servers,
        context_management: body.context_management,
    };
    let (conversation, _) = asked.into_conversation(limits)?;
    Ok((body.model, Source::Chat(conversation)))
}

/// What answers and counts have in common.
struct Asked {
    messages: Option<Vec<Turn>>,
    system: Option<Blocks>,
    tools: Option<Vec<AnthropicTool>>,
    tool_choice: Option<AnthropicToolChoice>,
    thinking: Option<Thinking>,
    effort: Option<String>,
    mcp_servers: Option<Loose>,
    context_management: Option<ContextManagement>,
}

impl Asked {
    fn into_conversation(self, limits: &Limits) -> Result<(Conversation, MessageDraft), ApiError> {
        refuse_unless_neutral("mcp_servers", self.mcp_servers)?;
        refuse_edits(self.context_management)?;
        let tools = tool_use(self.tools.unwrap_or_default(), self.tool_choice, limits)?;
        let thinks = thinks(self.thinking)?;
        let turns = self.messages.ok_or_else(|| ApiError::parameter("messages", "`messages` is missing"))?;
        at_most("messages", "messages", turns.len(), limits.messages_max)?;
        let mut messages = Vec::new();
        if let Some(system) = self.system {
            messages.push(Message::new("system", text_of(system, "system")?));
        }
        for (index, turn) in turns.into_iter().enumerate() {
            add_turn(&mut messages, index, turn)?;
        }
        // An assistant's last turn is the beginning of the answer.
        let continues = messages.last().is_some_and(|last| last.role == "assistant" && last.tool_calls.is_none());
        let mut template_variables = Map::new();
        template_variables.insert("enable_thinking".to_owned(), Value::Bool(thinks));
        if let Some(effort) = self.effort {
            // The highest effort has another name here.
            let effort = if effort == "max" { "xhigh" } else { &effort };
            set_reasoning_effort(effort, &mut template_variables)?;
        }
        let conversation = Conversation {
            messages,
            tools: tools.for_template(),
            continue_final_message: continues,
            template_variables,
            ..Conversation::default()
        };
        Ok((conversation, MessageDraft { tools, include_reasoning: thinks }))
    }
}

/// Conversations are sent as they are; an edit that keeps everything changes nothing.
fn refuse_edits(asked: Option<ContextManagement>) -> Result<(), ApiError> {
    let edits = asked.and_then(|asked| asked.edits).unwrap_or_default();
    let keeps_all = |edit: &ContextEdit| edit.keep.as_ref().and_then(Value::as_str) == Some("all");
    match edits.iter().find(|edit| !keeps_all(edit)) {
        None => Ok(()),
        Some(edit) => {
            let kind: String = edit.r#type.chars().take(60).collect();
            let message = format!("context_management: {kind:?} is not supported, unless it keeps all");
            Err(ApiError::parameter("context_management", message))
        }
    }
}

fn tool_use(
    tools: Vec<AnthropicTool>,
    choice: Option<AnthropicToolChoice>,
    limits: &Limits,
) -> Result<ToolUse, ApiError> {
    let offered = |(index, tool): (usize, AnthropicTool)| {
        let path = format!("tools[{index}]");
        if tool.r#type.as_deref().is_some_and(|kind| kind != "custom") {
            let field = format!("{path}.type");
            return Err(ApiError::parameter(field.clone(), format!("{field}: only custom tools are supported")));
        }
        refuse_others(&tool.other, &path)?;
        if tool.defer_loading == Some(true) {
            let field = format!("{path}.defer_loading");
            return Err(ApiError::parameter(field.clone(), format!("{field}: there is no search for tools")));
        }
        let function = ToolFunction {
            name: tool.name,
            description: tool.description,
            parameters: tool.input_schema,
            strict: tool.strict,
        };
        OfferedTool::new(function, &path)
    };
    let tools = tools.into_iter().enumerate().map(offered).collect::<Result<Vec<_>, _>>()?;
    let parallel = !choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use).unwrap_or(false);
    let choice = match choice {
        None => None,
        Some(AnthropicToolChoice { r#type, name, .. }) => Some(match (r#type.as_str(), name) {
            ("auto", _) => ToolChoice::Auto,
            ("any", _) => ToolChoice::Required,
            ("none", _) => ToolChoice::None,
            ("tool", Some(name)) => ToolChoice::Named(name),
            _ => {
                let message = "tool_choice.type must be auto, any, none, or tool with a name";
                return Err(ApiError::parameter("tool_choice", message));
            }
        }),
    };
    ToolUse::new(tools, choice, parallel, limits)
}

fn thinks(thinking: Option<Thinking>) -> Result<bool, ApiError> {
    match thinking.as_ref().map(|thinking| thinking.r#type.as_str()) {
        None | Some("disabled") => Ok(false),
        Some("enabled" | "adaptive") => Ok(true),
        Some(_) => Err(ApiError::parameter("thinking", "thinking.type must be enabled, adaptive or disabled")),
    }
}

fn add_turn(messages: &mut Vec<Message>, index: usize, turn: Turn) -> Result<(), ApiError> {
    let path = format!("messages[{index}]");
    let content = turn
        .content
        .ok_or_else(|| ApiError::parameter(format!("{path}.content"), format!("{path}.content is missing")))?;
    let blocks = match content {
        Blocks::Text(text) => vec![Block { r#type: "text".to_owned(), text: Some(text), ..Block::default() }],
        Blocks::List(blocks) => blocks,
    };
    match turn.role.as_deref() {
        Some("user") => add_user(messages, blocks, &path),
        Some("assistant") => add_assistant(messages, blocks, &path),
        _ => {
            let message = format!("{path}.role must be user or assistant; what comes before is in `system`");
            Err(ApiError::parameter(format!("{path}.role"), message))
        }
    }
}

/// Results of tools become messages of their own, before what the user says.
fn add_user(messages: &mut Vec<Message>, blocks: Vec<Block>, path: &str) -> Result<(), ApiError> {
    let mut said = Vec::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let at = format!("{path}.content[{index}]");
        if block.r#type != "tool_result" {
            said.push(block_text(block, &at)?);
            continue;
        }
        let Some(id) = block.tool_use_id else {
            return Err(ApiError::parameter(at.clone(), format!("{at}.tool_use_id is missing")));
        };
        let text = block.content.map(|content| text_of(content, &at)).transpose()?.unwrap_or_default();
        let text = if block.is_error == Some(true) { format!("Error: {text}") } else { text };
        messages.push(Message { tool_call_id: Some(id), ..Message::new("tool", text) });
    }
    if !said.is_empty() {
        messages.push(Message::new("user", said.join("\n")));
    }
    Ok(())
}

fn add_assistant(messages: &mut Vec<Message>, blocks: Vec<Block>, path: &str) -> Result<(), ApiError> {
    let (mut said, mut thought, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (index, block) in blocks.into_iter().enumerate() {
        let at = format!("{path}.content[{index}]");
        match block.r#type.as_str() {
            "thinking" => thought.push(block.thinking.unwrap_or_default()),
            // Nobody but the one who wrote it can read it.
            "redacted_thinking" => {}
            "tool_use" => {
                let (Some(id), Some(name)) = (block.id, block.name) else {
                    return Err(ApiError::parameter(at.clone(), format!("{at} needs an id and a name")));
                };
                let input = block.input.unwrap_or_else(|| json!({}));
                if !input.is_object() {
                    return Err(ApiError::parameter(at.clone(), format!("{at}.input must be an object")));
                }
                calls.push(past_call(&id, &name, Value::String(input.to_string())));
            }
            _ => said.push(block_text(block, &at)?),
        }
    }
    messages.push(Message {
        role: "assistant".to_owned(),
        content: (!said.is_empty()).then(|| MessageContent::Text(said.join("\n"))),
        reasoning_content: (!thought.is_empty()).then(|| thought.join("\n")),
        tool_calls: (!calls.is_empty()).then_some(Value::Array(calls)),
        ..Message::default()
    });
    Ok(())
}

fn text_of(blocks: Blocks, path: &str) -> Result<String, ApiError> {
    match blocks {
        Blocks::Text(text) => Ok(text),
        Blocks::List(blocks) => {
            let texts = blocks.into_iter().map(|block| block_text(block, path)).collect::<Result<Vec<_>, _>>()?;
            Ok(texts.join("\n"))
        }
    }
}

fn block_text(block: Block, path: &str) -> Result<String, ApiError> {
    match (block.r#type.as_str(), block.text) {
        ("text", Some(text)) => Ok(text),
        ("text", None) => Err(ApiError::parameter(path, format!("{path}.text is missing"))),
        _ => {
            let message = format!("{path}: blocks of this type are not supported here; text is");
            Err(ApiError::parameter(path, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: Value) -> Result<Draft, ApiError> {
        let body = serde_json::from_value(body).expect("the right types");
        draft(Caller::numbered(0), body, &Limits::default())
    }

    #[test]
    fn turns_become_messages() {
        let body = json!({"max_tokens": 5, "system": [{"type": "text", "text": "Be brief."}], "messages": [
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": true, "content": [{"type": "text", "text": "down"}]},
                {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}}]},
        ]});
        let Source::Chat(conversation) = parsed(body).expect("valid").source else { panic!("a conversation") };
        let messages = conversation.messages;
        let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(messages[2].reasoning_content.as_deref(), Some("Hm."));
        assert_eq!(messages[2].tool_calls.as_ref().expect("calls")[0]["function"]["arguments"], "{\"city\":\"Rome\"}");
        assert_eq!(messages[3].content.as_ref().expect("text").text(), "Error: down");
        assert!(!conversation.continue_final_message);
    }

    #[test]
    fn a_last_turn_of_the_assistant_is_continued() {
        let body = json!({"max_tokens": 5, "messages": [
            {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]});
        let Source::Chat(conversation) = parsed(body).expect("valid").source else { panic!("a conversation") };
        assert!(conversation.continue_final_message);
    }

    #[test]
    fn faults_name_the_place() {
        let with = |extra: Value| {
            let mut body = json!({"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]});
            body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            parsed(body).err().and_then(|error| error.param)
        };
        for (extra, param) in [
            (json!({"max_tokens": null}), "max_tokens"),
            (json!({"messages": [{"role": "system", "content": "a"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "messages[0].content[0]"),
            (json!({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]}), "tools[0].type"),
            (json!({"tools": [{"name": "f", "input_schema": {}, "max_uses": 5}]}), "tools[0].max_uses"),
            (json!({"tool_choice": {"type": "tool"}}), "tool_choice"),
            (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
            (json!({"thinking": {"type": "maybe"}}), "thinking"),
            (json!({"mcp_servers": [{}]}), "mcp_servers"),
            (json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}), "context_management"),
            (json!({"tools": [{"name": "f", "input_schema": {}, "defer_loading": true}]}), "tools[0].defer_loading"),
        ] {
            assert_eq!(with(extra.clone()).as_deref(), Some(param), "{extra}");
        }
    }
}
