//! API keys: who may call routes of class `key`.
//!
//! Keys are never kept: only their hashes under a key that is random per process. Every configured hash is compared,
//! always in full, so that timing tells nothing about which key was close.

use std::hash::{BuildHasher, RandomState};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::anthropic::AnthropicErrorBody;
use crate::body::json_response;
use crate::state::AppState;

/// The keys that open routes of class `key`; none configured means that everybody may call them.
#[derive(Clone)]
pub struct ApiKeys {
    hash_key: [u8; 16],
    hashes: Vec<u128>,
}

impl ApiKeys {
    /// Takes the configured keys; empty ones are ignored, because an empty key would admit everybody by accident.
    pub fn new<S: AsRef<str>>(keys: impl IntoIterator<Item = S>) -> Self {
        let mut hash_key = [0; 16];
        hash_key[..8].copy_from_slice(&RandomState::new().hash_one(0_u8).to_le_bytes());
        hash_key[8..].copy_from_slice(&RandomState::new().hash_one(1_u8).to_le_bytes());
        let hashes = keys
            .into_iter()
            .filter(|key| !key.as_ref().is_empty())
            .map(|key| hash(&hash_key, key.as_ref().as_bytes()))
            .collect();
        Self { hash_key, hashes }
    }

    /// Whether routes of class `key` ask for one.
    pub fn is_required(&self) -> bool {
        !self.hashes.is_empty()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.hashes.len()
    }

    /// Who calls, if the request brings a valid key or none is needed.
    pub fn identify(&self, headers: &HeaderMap) -> Option<Caller> {
        if !self.is_required() {
            return Some(Caller { number: 0, is_only: true });
        }
        let number = self.find(bearer(headers).or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes))?)?;
        Some(Caller { number, is_only: self.hashes.len() == 1 })
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        let candidate = hash(&self.hash_key, key);
        let numbered = self.hashes.iter().enumerate();
        numbered.fold(None, |found, (number, known)| if known ^ candidate == 0 { Some(number) } else { found })
    }
}

fn hash(hash_key: &[u8; 16], bytes: &[u8]) -> u128 {
    let mut hasher = SipHasher24::new_with_key(hash_key);
    std::hash::Hasher::write(&mut hasher, bytes);
    hasher.finish128().as_u128()
}

/// The key of `Authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
}

/// Which of the configured keys a request brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    number: usize,
    is_only: bool,
}

impl Caller {
    /// A caller among several, for tests.
    #[cfg(test)]
    pub(crate) fn numbered(number: usize) -> Self {
        Self { number, is_only: false }
    }

    /// Which of the keys it is; 0 where none is needed.
    pub(crate) fn number(self) -> usize {
        self.number
    }

    /// The salt of this caller's prefix cache. With several keys each has a cache of its own, so that nobody can tell
    /// from response times what another has asked.
    pub fn cache_salt(self, asked: Option<String>) -> Option<String> {
        match (self, asked) {
            (Self { is_only: true, .. }, asked) => asked,
            (Self { number, .. }, asked) => Some(format!("key {number}: {}", asked.unwrap_or_default())),
        }
    }
}

#[derive(Serialize)]
struct Unauthorized {
    error: &'static str,
}

/// Layer of every route of class `key`: it sits on the matched route, so that no trick with paths or `Host` passes it.
pub async fn require_key(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    if let Some(caller) = state.config().api_keys.identify(request.headers()) {
        request.extensions_mut().insert(caller);
        return next.run(request).await;
    }
    if request.uri().path().starts_with("/v1/messages") {
        let body = AnthropicErrorBody::new("authentication_error", "invalid x-api-key");
        return json_response(StatusCode::UNAUTHORIZED, &body);
    }
    unauthorized()
}

/// Layer of every route of class `admin`: API keys do not open it.
pub async fn require_admin_key(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let keys = &state.config().admin_keys;
    // Without a key there is no such route; should one be built all the same, it stays shut.
    if keys.is_required() && keys.identify(request.headers()).is_some() {
        return next.run(request).await;
    }
    unauthorized()
}

fn unauthorized() -> Response {
    let mut response = json_response(StatusCode::UNAUTHORIZED, &Unauthorized { error: "Unauthorized" }).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a legal header value"));
        headers
    }

    fn admits(keys: &ApiKeys, value: &str) -> bool {
        keys.identify(&headers(value)).is_some()
    }

    #[test]
    fn callers_with_different_keys_share_no_cache() {
        let keys = ApiKeys::new(["alpha", "beta"]);
        let salt = |value| keys.identify(&headers(value)).expect("a valid key").cache_salt(None);
        assert_ne!(salt("Bearer alpha"), salt("Bearer beta"));
        assert!(salt("Bearer alpha").is_some());
        let only = ApiKeys::new(["alpha"]).identify(&headers("Bearer alpha")).expect("a valid key");
        assert_eq!(only.cache_salt(None), None);
    }

    #[test]
    fn any_configured_key_opens_and_others_do_not() {
        let keys = ApiKeys::new(["alpha", "beta"]);
        assert!(admits(&keys, "Bearer alpha"));
        assert!(admits(&keys, "bearer beta"));
        for wrong in ["Bearer alph", "Bearer alphaa", "Bearer ", "Basic alpha", "alpha", "Bearer alpha beta"] {
            assert!(!admits(&keys, wrong), "{wrong}");
        }
        assert!(keys.identify(&HeaderMap::new()).is_none());
    }

    #[test]
    fn without_keys_everybody_may_call() {
        assert!(ApiKeys::new(Vec::<String>::new()).identify(&HeaderMap::new()).is_some());
    }

    #[test]
    fn an_empty_key_is_no_key() {
        assert!(!ApiKeys::new([""]).is_required());
        assert!(!admits(&ApiKeys::new(["", "alpha"]), "Bearer "));
    }
}
