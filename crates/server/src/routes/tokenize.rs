//! `/tokenize` and `/detokenize`.

use axum::http::StatusCode;
use axum::response::Response;
use firebrick_engine::TokenId;
use serde::{Deserialize, Serialize};

use crate::body::json_response;
use crate::chat_messages::messages_of;
use crate::error::ApiError;
use crate::incoming::Incoming;
use crate::limits::Limits;
use crate::openai::{ChatMessage, Prompt, Tool};
use crate::parameter::at_most;
use crate::prompt::{Conversation, Source};
use crate::state::AppState;
use crate::tool_use::{ToolUse, offered_tools};

/// The body of `/tokenize`.
#[derive(Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    tools: Option<Vec<Tool>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    chat_template_kwargs: Option<serde_json::Map<String, serde_json::Value>>,
    return_token_strs: Option<bool>,
}

#[derive(Serialize)]
struct TokenizeResponse {
    count: usize,
    max_model_len: u32,
    tokens: Vec<TokenId>,
    token_strs: Option<Vec<String>>,
}

/// Text or messages to tokens.
pub async fn tokenize(incoming: Incoming) -> Result<Response, ApiError> {
    let work = |state: &AppState, request: TokenizeRequest| {
        let limits = &state.config().limits;
        let model = state.model_named(request.model.as_deref())?;
        let with_texts = request.return_token_strs.unwrap_or(false);
        let source = source(request, limits)?;
        source.check(1, limits)?;
        let prompts = source.into_prompts(&model, false)?;
        let tokens = prompts.into_iter().next().map(|prompt| prompt.tokens).unwrap_or_default();
        let text = |&token: &TokenId| model.tokenizer.token_text(token).unwrap_or_default();
        let token_strs = with_texts.then(|| tokens.iter().map(text).collect());
        Ok(TokenizeResponse { count: tokens.len(), max_model_len: model.max_model_len, tokens, token_strs })
    };
    Ok(json_response(StatusCode::OK, &incoming.compute(work).await?))
}

fn source(request: TokenizeRequest, limits: &Limits) -> Result<Source, ApiError> {
    let tools = ToolUse::new(offered_tools(request.tools.unwrap_or_default())?, None, true, limits)?;
    match (request.prompt, request.messages) {
        (Some(prompt), None) => {
            let add_special_tokens = request.add_special_tokens.unwrap_or(true);
            Ok(Source::Prompt { prompt: Prompt::Texts(vec![prompt]), add_special_tokens })
        }
        (None, Some(messages)) => Ok(Source::Chat(Conversation {
            messages: messages_of(messages, limits)?,
            tools: tools.for_template(),
            add_generation_prompt: request.add_generation_prompt,
            continue_final_message: request.continue_final_message.unwrap_or(false),
            template_variables: request.chat_template_kwargs.unwrap_or_default(),
            add_special_tokens: request.add_special_tokens.unwrap_or(false),
        })),
        _ => Err(ApiError::parameter("prompt", "send either `prompt` or `messages`")),
    }
}

/// The body of `/detokenize`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<TokenId>,
}

#[derive(Serialize)]
struct DetokenizeResponse {
    prompt: String,
}

/// Tokens to text.
pub async fn detokenize(incoming: Incoming) -> Result<Response, ApiError> {
    let work = |state: &AppState, request: DetokenizeRequest| {
        let model = state.model_named(request.model.as_deref())?;
        at_most("tokens", "tokens", request.tokens.len(), model.max_model_len as usize)?;
        let vocab_size = model.engine.config().vocab_size;
        if let Some(token) = request.tokens.iter().find(|&&token| token >= vocab_size) {
            let message = format!("token {token} is outside the vocabulary of {vocab_size}");
            return Err(ApiError::parameter("tokens", message));
        }
        Ok(DetokenizeResponse { prompt: model.tokenizer.decode(&request.tokens, false) })
    };
    Ok(json_response(StatusCode::OK, &incoming.compute(work).await?))
}
