//! `/ui/`: the built page, where the command line asks for it. It is the same for everybody and holds nothing secret.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::error::{ApiError, ErrorKind};
use crate::page_files::PageFiles;
use crate::state::AppState;

/// The page's folder; other files lie below it.
pub const FOLDER_PATH: &str = "/ui/";
/// Its files.
pub const FILE_PATH: &str = "/ui/{*path}";
/// Paths that lead to it.
pub const DOORS: [&str; 2] = ["/", "/ui"];

/// The program and its worker come from here, WebAssembly is compiled, and models and other servers may be asked.
const POLICY: &str = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data:; \
                      connect-src *; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Headers of every file. The two in the middle isolate the page, which gives it exact clocks.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-embedder-policy"), HeaderValue::from_static("require-corp")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
];

/// Leads from `/` and `/ui` to the page, below whatever path a proxy puts in front.
pub async fn door() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("ui/"));
    response
}

/// The page itself.
pub async fn index(State(state): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    show(&state, "", &headers).await
}

/// A file of the page.
pub async fn file(
    State(state): State<AppState>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    show(&state, &path, &headers).await
}

async fn show(state: &AppState, path: &str, asked: &HeaderMap) -> Result<Response, ApiError> {
    let missing = || ApiError::new(ErrorKind::NotFound, "the page has no such file");
    let page: &PageFiles = state.config().page.as_deref().ok_or_else(missing)?;
    let compressed = page.find(&format!("{path}.gz")).filter(|_| accepts_gzip(asked) && !path.is_empty());
    let file = compressed.or_else(|| page.find(path)).ok_or_else(missing)?;
    let (body, bytes) = file.open().await.map_err(|error| {
        tracing::warn!("a file of the page cannot be read: {error}");
        missing()
    })?;
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(path)));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if compressed.is_some() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    // Names in assets/ carry a hash of the content; everything else may change under its name.
    let cached = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cached));
    Ok(response)
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip") && !matches!(weight.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
    })
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        None if path.is_empty() => "text/html; charset=utf-8",
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("wasm") => "application/wasm",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_those_who_take_it() {
        let accepts = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(text));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip, deflate, br") && accepts("br;q=1.0, GZIP;q=0.5"));
        assert!(!accepts("br") && !accepts("gzip;q=0") && !accepts("") && !accepts_gzip(&HeaderMap::new()));
    }
}
