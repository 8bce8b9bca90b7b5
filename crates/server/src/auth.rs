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

    /// Whether the request brings a valid key, or none is needed.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        if !self.is_required() {
            return true;
        }
        bearer(headers).is_some_and(|key| self.matches(key))
    }

    fn matches(&self, key: &[u8]) -> bool {
        let candidate = hash(&self.hash_key, key);
        self.hashes.iter().fold(0_u8, |found, known| found | u8::from((known ^ candidate) == 0)) == 1
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

#[derive(Serialize)]
struct Unauthorized {
    error: &'static str,
}

/// Layer of every route of class `key`: it sits on the matched route, so that no trick with paths or `Host` passes it.
pub async fn require_key(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if state.config().api_keys.admit(request.headers()) {
        return next.run(request).await;
    }
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

    #[test]
    fn any_configured_key_opens_and_others_do_not() {
        let keys = ApiKeys::new(["alpha", "beta"]);
        assert!(keys.admit(&headers("Bearer alpha")));
        assert!(keys.admit(&headers("bearer beta")));
        for wrong in ["Bearer alph", "Bearer alphaa", "Bearer ", "Basic alpha", "alpha", "Bearer alpha beta"] {
            assert!(!keys.admit(&headers(wrong)), "{wrong}");
        }
        assert!(!keys.admit(&HeaderMap::new()));
    }

    #[test]
    fn without_keys_everybody_may_call() {
        assert!(ApiKeys::new(Vec::<String>::new()).admit(&HeaderMap::new()));
    }

    #[test]
    fn an_empty_key_is_no_key() {
        assert!(!ApiKeys::new([""]).is_required());
        assert!(!ApiKeys::new(["", "alpha"]).admit(&headers("Bearer ")));
    }
}
