//! Comments in an event stream while nothing else is sent, so that proxies do not take it for dead.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::header;
use axum::response::Response;
use futures::{StreamExt, stream};

/// A line that begins with a colon means nothing in server-sent events.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// Puts a comment into an event stream after every `interval` of silence; other responses stay as they are. Event
/// streams are written in whole events, so that a comment never falls into the middle of one.
pub(crate) fn keep_alive(response: Response, interval: Duration) -> Response {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    if !content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream")) {
        return response;
    }
    response.map(|body| Body::from_stream(with_comments(body.into_data_stream(), interval)))
}

fn with_comments(
    events: BodyDataStream,
    interval: Duration,
) -> impl futures::Stream<Item = Result<Bytes, axum::Error>> + Send + 'static {
    stream::unfold(events, move |mut events| async move {
        match tokio::time::timeout(interval, events.next()).await {
            Ok(next) => next.map(|next| (next, events)),
            Err(_) => Some((Ok(Bytes::from_static(COMMENT)), events)),
        }
    })
}
