//! Asking the hub: redirects followed by hand, so that the token goes to the hub and to nobody else.

use std::time::Duration;

use ureq::Body;
use ureq::config::AutoHeaderValue;
use ureq::http::{HeaderMap, Response, header};

/// How long to wait for the hub, and how often to ask again.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To be connected.
    pub connect: Duration,
    /// Without a byte.
    pub idle: Duration,
    /// Before the second try; it doubles from try to try.
    pub pause: Duration,
    /// Tries in a row that bring nothing.
    pub tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        let [connect, idle, pause] = [10, 30, 1].map(Duration::from_secs);
        Self { connect, idle, pause, tries: 5 }
    }
}

/// Why the hub did not give what was asked for.
#[derive(Debug)]
pub enum HubError {
    /// It answered with this status; `retry_after` is its own advice.
    Status {
        /// The status code.
        code: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// It did not answer, or broke off.
    Unreachable(String),
    /// It sends us round in circles, or to where we will not go.
    Redirect(String),
}

impl HubError {
    /// Whether it is worth trying again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Status { code, .. } => matches!(code, 408 | 429 | 500..),
            Self::Unreachable(_) => true,
            Self::Redirect(_) => false,
        }
    }
}

impl std::fmt::Display for HubError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status { code, .. } => write!(f, "the hub answered {code}"),
            Self::Unreachable(reason) | Self::Redirect(reason) => f.write_str(reason),
        }
    }
}

/// A hub: where it is, and as whom it is asked.
pub struct Hub {
    /// Such as `https://huggingface.co`, without a slash at the end.
    pub endpoint: String,
    /// Sent to the endpoint alone.
    pub token: Option<String>,
    /// How long to wait for it.
    pub patience: Patience,
    agent: ureq::Agent,
}

impl Hub {
    /// A hub at `endpoint`.
    pub fn new(endpoint: &str, token: Option<String>, patience: Patience) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.idle))
            .timeout_per_read(Some(patience.idle))
            .max_redirects(0)
            .http_status_as_error(false)
            // Lengths and ranges count the file's own bytes.
            .accept_encoding(AutoHeaderValue::None)
            .user_agent(concat!("firebrick/", env!("CARGO_PKG_VERSION")));
        Self { endpoint: endpoint.trim_end_matches('/').to_owned(), token, patience, agent: config.build().into() }
    }

    /// The answer to a GET of `url`, from byte `from` on if that is not 0.
    pub fn get(&self, url: &str, from: u64) -> Result<Response<Body>, HubError> {
        const REDIRECTS_MAX: usize = 10;
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.get_once(&url, from)?;
            let status = response.status().as_u16();
            match status {
                200..=299 => return Ok(response),
                301 | 302 | 303 | 307 | 308 => url = redirected(&url, response.headers())?,
                code => return Err(HubError::Status { code, retry_after: retry_after(response.headers()) }),
            }
        }
        Err(HubError::Redirect(format!("{} redirects more than {REDIRECTS_MAX} times", self.endpoint)))
    }

    fn get_once(&self, url: &str, from: u64) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token
            && origin(url) == origin(&self.endpoint)
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|error| HubError::Unreachable(format!("cannot reach {}: {error}", shown(url))))
    }
}

/// Scheme, host and port; what stands before an `@` is part of the host here, so that it cannot hide another one.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#', '\\']).next()?;
    Some(format!("{scheme}://{host}").to_ascii_lowercase())
}

/// A URL without its query, which may hold a signature.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

fn redirected(url: &str, headers: &HeaderMap) -> Result<String, HubError> {
    let refused = |reason: &str| HubError::Redirect(format!("{} redirects {reason}", shown(url)));
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refused("without saying where to"))?;
    let base = origin(url).ok_or_else(|| refused("from nowhere"))?;
    let target = if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}:{location}", base.split(':').next().unwrap_or("https"))
    } else if location.starts_with('/') {
        format!("{base}{location}")
    } else {
        return Err(refused("to a relative place"));
    };
    if base.starts_with("https:") && !target.to_ascii_lowercase().starts_with("https:") {
        return Err(refused("to a place without TLS"));
    }
    Ok(target)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str, location: &str) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, location.parse().expect("a legal header value"));
        redirected(url, &headers).map_err(|error| error.to_string())
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("HTTPS://Hub.example/a?b"), origin("https://hub.example"));
        for other in [
            "http://hub.example/",
            "https://hub.example:8443/",
            "https://hub.example.evil/",
            "https://hub.example@evil/",
        ] {
            assert_ne!(origin(other), origin("https://hub.example/"), "{other}");
        }
    }

    #[test]
    fn redirects_lead_to_absolute_places_and_never_out_of_tls() {
        let from = "https://hub.example/a/b?c";
        assert_eq!(target(from, "https://cdn.example/x").as_deref(), Ok("https://cdn.example/x"));
        assert_eq!(target(from, "/x?y=http://z").as_deref(), Ok("https://hub.example/x?y=http://z"));
        assert_eq!(target(from, "//cdn.example/x").as_deref(), Ok("https://cdn.example/x"));
        assert!(target(from, "http://cdn.example/x").is_err_and(|error| error.contains("without TLS")));
        assert!(target(from, "x").is_err());
    }
}
