//! Every route, in one table. A route says who may call it and what it does, or it does not compile.

mod admin;
mod chat_completions;
mod completions;
mod docs;
mod embeddings;
mod generate;
mod health;
mod invocations;
mod load;
mod messages;
mod metrics;
mod model_info;
mod models;
mod page;
mod responses;
mod scores;
mod tokenize;
mod trace;
mod version;

pub(crate) use chat_completions::{set_reasoning_effort, set_verbosity};

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::anthropic::{CountTokensRequest, MessagesRequest};
use crate::auth::{require_admin_key, require_key};
use crate::error::{ApiError, ErrorKind};
use crate::head_limits::limit_head;
use crate::openai::{ChatRequest, CompletionRequest};
use crate::openapi::{Described, Operation, acts, removes, shows, takes};
use crate::responses::ResponsesRequest;
use crate::state::{AppState, CorsConfig, ServerConfig};
use crate::telemetry::trace as log_request;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Everybody: probes.
    Public,
    /// Who has a key, if keys are configured.
    Key,
    /// Who has an admin key; where none is configured, the route does not exist.
    Admin,
}

struct Route {
    path: &'static str,
    class: Class,
    methods: MethodRouter<AppState>,
    operations: Vec<Operation>,
}

fn route<const N: usize>(
    path: &'static str,
    class: Class,
    methods: MethodRouter<AppState>,
    operations: [Operation; N],
) -> Route {
    Route { path, class, methods, operations: operations.into() }
}

/// Every route: where, for whom, who answers, and what `/openapi.json` says about it.
#[rustfmt::skip]
fn table() -> Vec<Route> {
    use Class::{Admin, Key, Public};
    vec![
        route("/v1/chat/completions", Key, post(chat_completions::create), [takes::<ChatRequest>("Answer a conversation.").answers(STREAM)]),
        route("/v1/completions", Key, post(completions::create), [takes::<CompletionRequest>("Continue a text.").answers(STREAM)]),
        route("/v1/responses", Key, post(responses::create), [takes::<ResponsesRequest>("Answer a text or items, and keep the response.").answers(STREAM)]),
        route("/v1/responses/{response_id}", Key, get(responses::retrieve).delete(responses::delete), [shows("Show a kept response."), removes("Forget a kept response.")]),
        route("/v1/responses/{response_id}/cancel", Key, post(responses::cancel), [acts("End a response that is generated in the background.")]),
        route("/v1/messages", Key, post(messages::create), [takes::<MessagesRequest>("Answer a conversation, in Anthropic's format.").answers(STREAM)]),
        route("/v1/messages/count_tokens", Key, post(messages::count_tokens), [takes::<CountTokensRequest>("Count the tokens of a conversation.")]),
        route("/v1/models", Key, get(models::list), [shows("List the served models.")]),
        route("/v1/models/{*model}", Key, get(models::retrieve), [shows("Show a served model.")]),
        route("/v1/models/load", Admin, post(models::load), [takes::<models::LoadRequest>("Load a model beside those that are served.")]),
        route("/v1/models/unload", Admin, post(models::unload), [takes::<models::UnloadRequest>("Take a model out of service.")]),
        route("/tokenize", Key, post(tokenize::tokenize), [takes::<tokenize::TokenizeRequest>("Turn a text or a conversation into tokens.")]),
        route("/detokenize", Key, post(tokenize::detokenize), [takes::<tokenize::DetokenizeRequest>("Turn tokens into text.")]),
        route("/v1/embeddings", Key, post(embeddings::create), [takes::<embeddings::EmbeddingsRequest>("Turn texts into vectors.")]),
        route("/v1/score", Key, post(scores::score), [takes::<scores::ScoreRequest>("Say how near texts are to each other.")]),
        route("/score", Key, post(scores::score), [takes::<scores::ScoreRequest>("The same as /v1/score.")]),
        route("/v1/rerank", Key, post(scores::rerank), [takes::<scores::RerankRequest>("Put documents in the order of their nearness to a query.")]),
        route("/rerank", Key, post(scores::rerank), [takes::<scores::RerankRequest>("The same as /v1/rerank.")]),
        route("/v2/rerank", Key, post(scores::rerank), [takes::<scores::RerankRequest>("The same as /v1/rerank.")]),
        route("/invocations", Key, post(invocations::invoke), [takes::<invocations::InvocationRequest>("Answer as the endpoint does that the body is for.").answers(STREAM)]),
        route("/generate", Key, post(generate::generate), [takes::<generate::GenerateRequest>("Continue a text, in a plain format.")]),
        route("/batch_generate", Key, post(generate::batch_generate), [takes::<generate::BatchRequest>("Continue several texts.")]),
        route("/model_info", Key, get(model_info::show), [shows("Say what is served.")]),
        route("/version", Key, get(version::show), [shows("Say which version this is.")]),
        route("/load", Key, get(load::show), [shows("Count the open requests.")]),
        route("/metrics", Key, get(metrics::show), [shows("Show metrics for Prometheus.").answers(TEXT)]),
        route("/metrics.json", Key, get(metrics::show_json), [shows("Show a few numbers.")]),
        route("/health", Public, get(health::health), [shows("Say whether the model is loaded and moves.")]),
        route("/ping", Public, get(health::health).post(health::health), [shows("The same as /health."), acts("The same as /health.")]),
        route("/ready", Public, get(health::ready), [shows("Say whether new work is accepted.")]),
        route(docs::DOCUMENT_PATH, Key, get(docs::document), [shows("Show this description.")]),
        route(docs::PAGE_PATH, Public, get(docs::page), [shows("Show this description as a page.").answers(&["text/html"])]),
        route(page::DOORS[0], Public, get(page::door), []),
        route(page::DOORS[1], Public, get(page::door), []),
        route(page::FOLDER_PATH, Public, get(page::index), []),
        route(page::FILE_PATH, Public, get(page::file), []),
        route(trace::STEPS_PATH, Admin, get(trace::watch), [shows("Show the engine's state after each step.").answers(&["text/event-stream"])]),
        route(trace::BLOCK_PATH, Admin, get(trace::block), [shows("Show the tokens in a block of the KV cache.")]),
        route("/admin/requests", Admin, get(admin::list_requests), [shows("List the open requests.")]),
        route("/admin/pause", Admin, post(admin::pause), [acts("Refuse new requests.")]),
        route("/admin/resume", Admin, post(admin::resume), [acts("Accept requests again.")]),
    ]
}

const STREAM: &[&str] = &["application/json", "text/event-stream"];
const TEXT: &[&str] = &["text/plain", "application/json"];

/// The routes that exist under this configuration.
fn existing(state: &AppState) -> impl Iterator<Item = Route> {
    let ServerConfig { docs, trace, admin_keys, page, .. } = state.config();
    let (admin, docs, trace, page) = (admin_keys.is_required(), *docs, *trace, page.is_some());
    table().into_iter().filter(move |route| match (route.class, route.path) {
        (_, trace::STEPS_PATH | trace::BLOCK_PATH) => admin && trace,
        (Class::Admin, _) => admin,
        (_, page::FOLDER_PATH | page::FILE_PATH) => page,
        (_, path) if page::DOORS.contains(&path) => page,
        (_, docs::DOCUMENT_PATH | docs::PAGE_PATH) => docs,
        _ => true,
    })
}

/// The same routes for `/openapi.json`.
fn described(state: &AppState) -> impl Iterator<Item = Described> {
    let has_keys = state.config().api_keys.is_required();
    let real = existing(state).filter(|route| !route.operations.is_empty());
    real.map(move |Route { path, class, operations, .. }| {
        let security = match class {
            Class::Key if has_keys => Some("apiKey"),
            Class::Admin => Some("adminKey"),
            _ => None,
        };
        Described { path, security, operations }
    })
}

/// The server's routes.
pub fn router(state: AppState) -> Router {
    let mut router = Router::new();
    for Route { path, class, methods, .. } in existing(&state) {
        let keyed =
            |methods: MethodRouter<AppState>| methods.route_layer(from_fn_with_state(state.clone(), require_key));
        let methods = match class {
            Class::Public => methods,
            Class::Key => keyed(methods),
            Class::Admin => methods.route_layer(from_fn_with_state(state.clone(), require_admin_key)),
        };
        router = router.route(path, methods);
    }
    let root_path = state.config().root_path.clone();
    below(root_path.as_deref(), finish(router, state))
}

/// The same routes below `path` too, for proxies that pass it on.
fn below(path: Option<&str>, router: Router) -> Router {
    match path.map(|path| path.trim_matches('/')).filter(|path| !path.is_empty()) {
        Some(path) => Router::new().nest_service(&format!("/{path}"), router.clone()).fallback_service(router),
        None => router,
    }
}

/// The routes of a separate metrics port, which is reachable by the monitoring only and asks for no key.
pub fn metrics_router(state: AppState) -> Router {
    let router = Router::new()
        .route("/metrics", get(metrics::show))
        .route("/metrics.json", get(metrics::show_json))
        .route("/health", get(health::health));
    finish(router, state)
}

fn finish(router: Router<AppState>, state: AppState) -> Router {
    let mut router = router.fallback(not_found).method_not_allowed_fallback(method_not_allowed);
    if let Some(cors) = &state.config().cors {
        router = router.layer(cors_layer(cors));
    }
    let router = router.layer(from_fn_with_state(state.clone(), log_request));
    // The outermost: what is too long is not even logged.
    router.layer(from_fn_with_state(state.clone(), limit_head)).with_state(state)
}

async fn not_found() -> ApiError {
    ApiError::new(ErrorKind::NotFound, "there is no such path")
}

async fn method_not_allowed(method: Method) -> ApiError {
    let message = format!("this path does not accept the method {}", limited(method.as_str()));
    ApiError::new(ErrorKind::MethodNotAllowed, message)
}

fn limited(text: &str) -> String {
    text.chars().take(20).collect()
}

fn cors_layer(config: &CorsConfig) -> CorsLayer {
    let all = |values: &[String]| values.iter().any(|value| value == "*");
    let origins = if all(&config.origins) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(config.origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let methods = if all(&config.methods) {
        AllowMethods::any()
    } else {
        AllowMethods::list(config.methods.iter().filter_map(|method| method.parse::<Method>().ok()))
    };
    let headers = if all(&config.headers) {
        // Browsers do not take `*` to mean `Authorization`: what a page asks for is allowed by name.
        AllowHeaders::mirror_request()
    } else {
        AllowHeaders::list(config.headers.iter().filter_map(|name| name.parse::<HeaderName>().ok()))
    };
    CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(headers)
}
