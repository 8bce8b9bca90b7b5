//! `/openapi.json` and `/docs`, a page that shows it. The page is the same everywhere, holds nothing secret and loads
//! nothing from elsewhere; it asks for a key where the description needs one.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::body::json_response;
use crate::openapi;
use crate::routes::described;
use crate::state::AppState;

/// Where the description is.
pub const DOCUMENT_PATH: &str = "/openapi.json";
/// Where the page is.
pub const PAGE_PATH: &str = "/docs";

/// The description of every route.
pub async fn document(State(state): State<AppState>) -> Response {
    let root = state.config().root_path.as_deref().unwrap_or_default().trim_matches('/');
    let document = openapi::document(described(&state), state.config().version, &format!("/{root}"));
    json_response(StatusCode::OK, &document)
}

const POLICY: &str = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// The page.
pub async fn page() -> Response {
    let mut response = Response::new(Body::from(include_str!("docs.html")));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}
