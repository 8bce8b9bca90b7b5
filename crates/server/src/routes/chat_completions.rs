//! `/v1/chat/completions`: messages in, the assistant's message out.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::answer::Format;
use crate::auth::Caller;
use crate::body::read_json;
use crate::error::ApiError;
use crate::openai::{ChatRequest, Loose, OneOrMany};
use crate::prompt::{Conversation, Source};
use crate::serve_request::serve_request;
use crate::state::AppState;
use crate::telemetry::RequestContext;
use crate::validate::{Draft, refuse_unless_neutral};

/// Answers a conversation.
pub async fn create(
    State(state): State<AppState>,
    Extension(context): Extension<RequestContext>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let read = async { draft(caller, read_json(&headers, body, &state.config().limits).await?) };
    serve_request(&state, context, Format::Chat, read).await
}

fn draft(caller: Caller, mut body: ChatRequest) -> Result<Draft, ApiError> {
    refuse_tools(&body)?;
    let mut sampling = body.take_sampling();
    sampling.max_tokens = body.max_completion_tokens.or(sampling.max_tokens);
    let logprobs = match (body.logprobs.unwrap_or(false), body.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::parameter("top_logprobs", "top_logprobs is only allowed when logprobs is true"));
        }
    };
    let conversation = Conversation {
        messages: body.messages.ok_or_else(|| ApiError::parameter("messages", "`messages` is missing"))?,
        add_generation_prompt: body.add_generation_prompt,
        continue_final_message: body.continue_final_message.unwrap_or(false),
        template_variables: body.chat_template_kwargs.unwrap_or_default(),
        add_special_tokens: body.add_special_tokens.unwrap_or(false),
    };
    Ok(Draft { caller, source: Source::Chat(conversation), sampling, logprobs, echo: false, default_max_tokens: None })
}

fn refuse_tools(body: &ChatRequest) -> Result<(), ApiError> {
    let auto_without_tools = body.tools.is_none_or(Loose::is_neutral) && body.tool_choice == Some(Loose::Text);
    let tool_choice = body.tool_choice.filter(|_| !auto_without_tools);
    let refused = [
        ("tools", body.tools),
        ("tool_choice", tool_choice),
        ("functions", body.functions),
        ("function_call", body.function_call),
        ("chat_template", body.chat_template),
    ];
    for (name, value) in refused {
        refuse_unless_neutral(name, value)?;
    }
    match &body.modalities {
        Some(OneOrMany(modalities)) if modalities.iter().any(|modality| modality != "text") => {
            Err(ApiError::parameter("modalities", "only the modality text is supported"))
        }
        _ => Ok(()),
    }
}
