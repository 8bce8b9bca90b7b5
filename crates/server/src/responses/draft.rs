//! A request of the Responses API to what every front door makes.

use firebrick_text::{Message, MessageContent};
use serde_json::{Map, Value, json};

use crate::auth::Caller;
use crate::body::refuse_others;
use crate::error::{ApiError, ErrorKind};
use crate::limits::Limits;
use crate::message::{CallIds, MessageDraft};
use crate::openai::{JsonSchemaFormat, ResponseFormat as ResponseFormatFields, SamplingFields, ToolFunction};
use crate::parameter::refuse_unless_neutral;
use crate::prompt::{Conversation, Source};
use crate::routes::{set_reasoning_effort, set_verbosity};
use crate::state::AppState;
use crate::tool_use::{OfferedTool, ToolUse, tool_choice};
use crate::validate::Draft;

use super::format::{Keep, ResponseFormat};
use super::input::messages_of;
use super::request::{FlatTool, ResponsesRequest, TextFields, TextFormat};

/// The request, and what it says about the response.
pub fn draft(
    state: &AppState,
    caller: Caller,
    mut body: ResponsesRequest,
) -> Result<(Box<ResponseFormat>, Draft), ApiError> {
    let limits = &state.config().limits;
    refuse_unsupported(&body)?;
    let parallel = body.parallel_tool_calls.unwrap_or(true);
    let choice = tool_choice(body.tool_choice.as_ref())?;
    let echo = echo(&body);
    let tools = ToolUse::new(offered_tools(body.tools.take().unwrap_or_default())?, choice, parallel, limits)?;
    let messages = conversation(state, caller, &mut body, limits)?;
    let mut template_variables = body.chat_template_kwargs.take().unwrap_or_default();
    if let Some(effort) = body.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref()) {
        set_reasoning_effort(effort, &mut template_variables)?;
    }
    if let Some(verbosity) = body.text.as_ref().and_then(|text| text.verbosity.as_deref()) {
        set_verbosity(verbosity, "text", &mut template_variables)?;
    }
    let background = body.background.unwrap_or(false);
    let keeps = body.store.unwrap_or(true);
    let keep = keeps.then(|| Keep { state: state.clone(), caller, messages: messages.clone() });
    let conversation = Conversation {
        messages: with_instructions(body.instructions.take(), messages),
        tools: tools.for_template(),
        template_variables,
        ..Conversation::default()
    };
    let include_reasoning = body.include_reasoning.unwrap_or(true);
    let draft = Draft {
        caller,
        source: Source::Chat(conversation),
        sampling: sampling(body),
        logprobs: None,
        echo: false,
        pooling: None,
        message: Some(MessageDraft { tools, include_reasoning }),
        default_max_tokens: None,
    };
    Ok((Box::new(ResponseFormat { echo, keep, background, item_ids: CallIds::new(false) }), draft))
}

/// Instructions and the system messages that the conversation begins with become one message: agents send both, and many
/// templates take no system message but the first.
fn with_instructions(instructions: Option<String>, mut messages: Vec<Message>) -> Vec<Message> {
    let text_of = |message: &Message| match &message.content {
        Some(MessageContent::Text(text)) if message.role == "system" => Some(text.clone()),
        _ => None,
    };
    let leading: Vec<String> = messages.iter().map_while(text_of).collect();
    messages.drain(..leading.len());
    let told: Vec<String> = instructions.into_iter().chain(leading).collect();
    let system = (!told.is_empty()).then(|| Message::new("system", told.join("\n\n")));
    system.into_iter().chain(messages).collect()
}

/// The kept conversation that is continued, and what is new.
fn conversation(
    state: &AppState,
    caller: Caller,
    body: &mut ResponsesRequest,
    limits: &Limits,
) -> Result<Vec<Message>, ApiError> {
    let input = body.input.take().ok_or_else(|| ApiError::parameter("input", "`input` is missing"))?;
    let new = messages_of(input, limits)?;
    let Some(id) = &body.previous_response_id else { return Ok(new) };
    let name = "previous_response_id";
    let Some(previous) = state.responses().get(caller, id) else {
        let id: String = id.chars().take(100).collect();
        let message = format!("Previous response with id {:?} not found.", id);
        return Err(ApiError { kind: ErrorKind::NotFound, message, param: Some(name.to_owned()) });
    };
    if previous.running.is_some() {
        return Err(ApiError::parameter(name, "the previous response is still being generated"));
    }
    Ok(previous.messages.into_iter().chain(new).collect())
}

fn sampling(body: ResponsesRequest) -> SamplingFields {
    SamplingFields {
        model: body.model,
        max_tokens: body.max_output_tokens,
        temperature: body.temperature,
        top_p: body.top_p,
        top_k: body.top_k,
        min_p: body.min_p,
        seed: body.seed,
        repetition_penalty: body.repetition_penalty,
        presence_penalty: body.presence_penalty,
        frequency_penalty: body.frequency_penalty,
        stop: body.stop,
        stop_token_ids: body.stop_token_ids,
        include_stop_str_in_output: body.include_stop_str_in_output,
        ignore_eos: body.ignore_eos,
        logit_bias: body.logit_bias,
        skip_special_tokens: body.skip_special_tokens,
        structured_outputs: body.structured_outputs,
        priority: body.priority,
        cache_salt: body.cache_salt,
        stream: body.stream,
        response_format: body.text.and_then(|text| text.format).map(response_format),
        ..SamplingFields::default()
    }
}

fn offered_tools(tools: Vec<FlatTool>) -> Result<Vec<OfferedTool>, ApiError> {
    let offered = |(index, tool): (usize, FlatTool)| {
        let path = format!("tools[{index}]");
        if tool.r#type.as_deref() != Some("function") {
            let field = format!("{path}.type");
            return Err(ApiError::parameter(field.clone(), format!("{field}: only the type function is supported")));
        }
        let FlatTool { r#type: _, name, description, parameters, strict, other } = tool;
        refuse_others(&other, &path)?;
        OfferedTool::new(ToolFunction { name, description, parameters, strict }, &path)
    };
    tools.into_iter().enumerate().map(offered).collect()
}

fn refuse_unsupported(body: &ResponsesRequest) -> Result<(), ApiError> {
    let empty = [
        ("conversation", body.conversation),
        ("prompt", body.prompt),
        ("context_management", body.context_management),
        ("moderation", body.moderation),
    ];
    for (name, value) in empty {
        refuse_unless_neutral(name, value)?;
    }
    let background = body.background.unwrap_or(false);
    let refused = [
        (
            "top_logprobs",
            body.top_logprobs.is_some_and(|count| count != 0),
            "log-probabilities are not part of responses",
        ),
        ("max_tool_calls", body.max_tool_calls.is_some(), "it limits built-in tools, of which there are none"),
        (
            "truncation",
            body.truncation.as_deref().is_some_and(|mode| mode != "disabled" && mode != "auto"),
            "must be auto or disabled",
        ),
        (
            "include",
            body.include.iter().flatten().any(|asked| asked != "reasoning.encrypted_content"),
            "only reasoning.encrypted_content is supported",
        ),
        (
            "stream_options",
            body.stream_options.as_ref().is_some_and(|options| options.include_obfuscation == Some(true)),
            "include_obfuscation is not supported",
        ),
        ("background", background && body.stream == Some(true), "a background response cannot be streamed"),
        ("background", background && body.store == Some(false), "a background response must be stored"),
    ];
    for (name, is_asked, reason) in refused {
        if is_asked {
            return Err(ApiError::parameter(name, format!("{name}: {reason}")));
        }
    }
    let format = body.text.as_ref().and_then(|text| text.format.as_ref());
    match format.map(|format| (format.r#type.as_str(), &format.schema)) {
        None | Some(("text" | "json_object", None) | ("json_schema", Some(_))) => Ok(()),
        _ => {
            let message = "text.format: supported are text, json_object, and json_schema with a schema";
            Err(ApiError::parameter("text", message))
        }
    }
}

fn response_format(format: TextFormat) -> ResponseFormatFields {
    let TextFormat { r#type, schema, name, description, strict } = format;
    let json_schema = schema.map(|schema| JsonSchemaFormat { name, description, schema: Some(schema), strict });
    ResponseFormatFields { r#type, json_schema, ..ResponseFormatFields::default() }
}

/// `text.format` as responses repeat it.
fn format_value(format: Option<&TextFormat>) -> Value {
    match format {
        Some(TextFormat { r#type, schema: Some(schema), name, description, strict }) => json!({
            "type": r#type, "name": name, "description": description, "strict": strict, "schema": schema,
        }),
        Some(TextFormat { r#type, .. }) => json!({"type": r#type}),
        None => json!({"type": "text"}),
    }
}

/// `text` as responses repeat it.
fn text_value(text: Option<&TextFields>) -> Value {
    let mut value = json!({"format": format_value(text.and_then(|text| text.format.as_ref()))});
    if let Some(verbosity) = text.and_then(|text| text.verbosity.as_deref()) {
        value["verbosity"] = json!(verbosity);
    }
    value
}

/// What the response repeats of its request.
fn echo(body: &ResponsesRequest) -> Map<String, Value> {
    let tool = |tool: &FlatTool| {
        json!({
            "type": "function", "name": tool.name, "description": tool.description,
            "parameters": tool.parameters, "strict": tool.strict.unwrap_or(false),
        })
    };
    let tools: Vec<Value> = body.tools.iter().flatten().map(tool).collect();
    let effort = body.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
    let fields = json!({
        "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "max_tool_calls": null,
        "metadata": body.metadata.clone().unwrap_or_default(),
        "parallel_tool_calls": body.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": body.previous_response_id, "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": null}, "safety_identifier": body.safety_identifier,
        "service_tier": "default", "store": body.store.unwrap_or(true),
        "temperature": body.temperature.unwrap_or(1.0), "text": text_value(body.text.as_ref()),
        "tool_choice": body.tool_choice.clone().unwrap_or_else(|| json!("auto")), "tools": tools,
        "top_logprobs": 0, "top_p": body.top_p.unwrap_or(1.0), "truncation": "disabled", "user": body.user,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_and_leading_system_messages_are_one() {
        let said = |role: &str, text: &str| Message::new(role, text);
        let roles_and_texts = |instructions: Option<&str>, messages: Vec<Message>| -> Vec<(String, String)> {
            let messages = with_instructions(instructions.map(str::to_owned), messages);
            let text = |content| match content {
                Some(MessageContent::Text(text)) => text,
                other => panic!("{other:?}"),
            };
            messages.into_iter().map(|message| (message.role, text(message.content))).collect()
        };
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(role, text)| ((*role).to_owned(), (*text).to_owned())).collect()
        };
        let asked = vec![said("system", "b"), said("system", "c"), said("user", "d"), said("system", "e")];
        let expected = pairs(&[("system", "a\n\nb\n\nc"), ("user", "d"), ("system", "e")]);
        assert_eq!(roles_and_texts(Some("a"), asked), expected);
        assert_eq!(roles_and_texts(None, vec![said("user", "d")]), pairs(&[("user", "d")]));
        assert_eq!(roles_and_texts(Some("a"), vec![said("user", "d")]), pairs(&[("system", "a"), ("user", "d")]));
    }
}
