//! Limits of a request's head. The reader of connections bounds its buffer and the number of headers; what it lets
//! through is measured here, before anything else sees or logs it.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, ErrorKind};
use crate::limits::Limits;
use crate::state::AppState;

/// Layer of all routes: 414 for a path that is too long, 431 for headers that are.
pub async fn limit_head(State(state): State<AppState>, request: Request, next: Next) -> Response {
    match check(request.uri(), request.headers(), &state.config().limits) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(uri: &Uri, headers: &HeaderMap, limits: &Limits) -> Result<(), ApiError> {
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if path > limits.path_bytes_max {
        let message = format!("the path has {path} bytes, the limit is {}", limits.path_bytes_max);
        return Err(ApiError::new(ErrorKind::PathTooLong, message));
    }
    let refused = |what: &str, bytes: usize, max: usize| {
        Err(ApiError::new(ErrorKind::HeadTooLarge, format!("{what} {bytes} bytes, the limit is {max}")))
    };
    // A colon, a space, and the end of the line.
    let line = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    let longest = headers.iter().map(line).max().unwrap_or(0);
    if longest > limits.header_line_bytes_max {
        return refused("a header has", longest, limits.header_line_bytes_max);
    }
    let all = path + headers.iter().map(line).sum::<usize>();
    if all > limits.head_bytes_max {
        return refused("path and headers have", all, limits.head_bytes_max);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path_bytes: usize, header_bytes: &[usize]) -> Option<ErrorKind> {
        let uri = format!("/{}", "p".repeat(path_bytes - 1)).parse().expect("a path");
        let mut headers = HeaderMap::new();
        for bytes in header_bytes {
            let value = HeaderValue::from_str(&"v".repeat(bytes - "x-name".len() - 4)).expect("a value");
            headers.append("x-name", value);
        }
        check(&uri, &headers, &Limits::default()).err().map(|error| error.kind)
    }

    #[test]
    fn path_lines_and_all_together_have_a_limit() {
        assert_eq!(refused(4096, &[8192, 4096]), None);
        assert_eq!(refused(4097, &[]), Some(ErrorKind::PathTooLong));
        assert_eq!(refused(10, &[8193]), Some(ErrorKind::HeadTooLarge));
        assert_eq!(refused(4096, &[8192, 4097]), Some(ErrorKind::HeadTooLarge));
        assert_eq!(refused(1, &[300; 60]), Some(ErrorKind::HeadTooLarge));
    }
}
