//! Every route, in one table. A route says who may call it, or it does not compile.

mod admin;
mod chat_completions;
mod completions;
mod generate;
mod health;
mod load;
mod metrics;
mod model_info;
mod models;
mod tokenize;
mod version;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::auth::{require_admin_key, require_key};
use crate::error::{ApiError, ErrorKind};
use crate::state::{AppState, CorsConfig};
use crate::telemetry::trace;

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
}

fn table() -> Vec<Route> {
    use Class::{Admin, Key, Public};
    let route = |path, class, methods| Route { path, class, methods };
    vec![
        route("/v1/chat/completions", Key, post(chat_completions::create)),
        route("/v1/completions", Key, post(completions::create)),
        route("/v1/models", Key, get(models::list)),
        route("/v1/models/{*model}", Key, get(models::retrieve)),
        route("/tokenize", Key, post(tokenize::tokenize)),
        route("/detokenize", Key, post(tokenize::detokenize)),
        route("/generate", Key, post(generate::generate)),
        route("/batch_generate", Key, post(generate::batch_generate)),
        route("/model_info", Key, get(model_info::show)),
        route("/version", Key, get(version::show)),
        route("/load", Key, get(load::show)),
        route("/metrics", Key, get(metrics::show)),
        route("/metrics.json", Key, get(metrics::show_json)),
        route("/health", Public, get(health::health)),
        route("/ping", Public, get(health::health).post(health::health)),
        route("/ready", Public, get(health::ready)),
        route("/admin/requests", Admin, get(admin::list_requests)),
        route("/admin/pause", Admin, post(admin::pause)),
        route("/admin/resume", Admin, post(admin::resume)),
    ]
}

/// The server's routes.
pub fn router(state: AppState) -> Router {
    let mut router = Router::new();
    for Route { path, class, methods } in table() {
        let keyed =
            |methods: MethodRouter<AppState>| methods.route_layer(from_fn_with_state(state.clone(), require_key));
        let methods = match class {
            Class::Public => methods,
            Class::Key => keyed(methods),
            Class::Admin if state.config().admin_keys.is_required() => {
                methods.route_layer(from_fn_with_state(state.clone(), require_admin_key))
            }
            Class::Admin => continue,
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
    router.layer(from_fn_with_state(state.clone(), trace)).with_state(state)
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
        AllowHeaders::any()
    } else {
        AllowHeaders::list(config.headers.iter().filter_map(|name| name.parse::<HeaderName>().ok()))
    };
    CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(headers)
}
