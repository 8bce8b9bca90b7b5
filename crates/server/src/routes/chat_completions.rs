//! `/v1/chat/completions`: messages in, the assistant's message out.

use axum::response::Response;
use serde_json::{Map, Value};

use crate::answer::Format;
use crate::auth::Caller;
use crate::chat_messages::messages_of;
use crate::error::ApiError;
use crate::incoming::Incoming;
use crate::limits::Limits;
use crate::message::MessageDraft;
use crate::openai::{ChatRequest, OneOrMany};
use crate::parameter::refuse_unless_neutral;
use crate::prompt::{Conversation, Source};
use crate::state::AppState;
use crate::tool_use::{ToolUse, offered_tools, tool_choice};
use crate::validate::Draft;

/// Answers a conversation.
pub async fn create(incoming: Incoming) -> Result<Response, ApiError> {
    let read = |state: &AppState, caller, body| Ok((Format::Chat, draft(caller, body, &state.config().limits)?));
    incoming.serve("chat completion", read).await
}

fn draft(caller: Caller, mut body: ChatRequest, limits: &Limits) -> Result<Draft, ApiError> {
    refuse_unsupported(&body)?;
    let mut sampling = body.take_sampling();
    sampling.max_tokens = body.max_completion_tokens.or(sampling.max_tokens);
    let logprobs = match (body.logprobs.unwrap_or(false), body.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::parameter("top_logprobs", "top_logprobs is only allowed when logprobs is true"));
        }
    };
    let parallel = body.parallel_tool_calls.unwrap_or(true);
    let choice = tool_choice(body.tool_choice.as_ref())?;
    let tools = ToolUse::new(offered_tools(body.tools.take().unwrap_or_default())?, choice, parallel, limits)?;
    let messages = body.messages.ok_or_else(|| ApiError::parameter("messages", "`messages` is missing"))?;
    let mut template_variables = body.chat_template_kwargs.unwrap_or_default();
    if let Some(documents) = body.documents.filter(|documents| !documents.is_empty()) {
        let documents = documents.into_iter().map(Value::Object).collect();
        template_variables.entry("documents").or_insert(Value::Array(documents));
    }
    if let Some(effort) = body.reasoning_effort {
        set_reasoning_effort(&effort, &mut template_variables)?;
    }
    if let Some(verbosity) = body.verbosity {
        set_verbosity(&verbosity, "verbosity", &mut template_variables)?;
    }
    let conversation = Conversation {
        messages: messages_of(messages, limits)?,
        tools: tools.for_template(),
        add_generation_prompt: body.add_generation_prompt,
        continue_final_message: body.continue_final_message.unwrap_or(false),
        template_variables,
        add_special_tokens: body.add_special_tokens.unwrap_or(false),
    };
    Ok(Draft {
        caller,
        source: Source::Chat(conversation),
        sampling,
        logprobs,
        echo: false,
        pooling: None,
        message: Some(MessageDraft { tools, include_reasoning: body.include_reasoning.unwrap_or(true) }),
        default_max_tokens: None,
    })
}

/// How long to think is the template's affair; `none` also sets the variable that most templates use to switch it off.
pub fn set_reasoning_effort(effort: &str, variables: &mut Map<String, Value>) -> Result<(), ApiError> {
    const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
    if !EFFORTS.contains(&effort) {
        let message = format!("reasoning_effort must be one of {}", EFFORTS.join(", "));
        return Err(ApiError::parameter("reasoning_effort", message));
    }
    variables.entry("reasoning_effort").or_insert_with(|| Value::from(effort));
    if effort == "none" {
        variables.entry("enable_thinking").or_insert(Value::Bool(false));
    }
    Ok(())
}

/// How much to say is the template's affair as well; few have a variable for it. `field` is what errors name.
pub fn set_verbosity(verbosity: &str, field: &str, variables: &mut Map<String, Value>) -> Result<(), ApiError> {
    if !["low", "medium", "high"].contains(&verbosity) {
        return Err(ApiError::parameter(field, "verbosity must be low, medium or high"));
    }
    variables.entry("verbosity").or_insert_with(|| Value::from(verbosity));
    Ok(())
}

fn refuse_unsupported(body: &ChatRequest) -> Result<(), ApiError> {
    let refused = [
        ("functions", body.functions),
        ("function_call", body.function_call),
        ("chat_template", body.chat_template),
        ("audio", body.audio),
        ("moderation", body.moderation),
        ("echo", body.echo),
    ];
    for (name, value) in refused {
        refuse_unless_neutral(name, value)?;
    }
    // An empty object asks for a search with the usual options.
    if body.web_search_options.is_some() {
        return Err(ApiError::parameter("web_search_options", "web_search_options is not supported"));
    }
    match &body.modalities {
        Some(OneOrMany(modalities)) if modalities.iter().any(|modality| modality != "text") => {
            Err(ApiError::parameter("modalities", "only the modality text is supported"))
        }
        _ => Ok(()),
    }
}
