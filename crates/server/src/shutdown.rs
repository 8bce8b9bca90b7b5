//! Serving and leaving: connections with limits, and an orderly end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

use crate::limits::Limits;
use crate::listener::{Accepted, Listener};
use crate::patient_stream::PatientStream;
use crate::routes::{metrics_router, router};
use crate::state::AppState;
use crate::tls::Tls;

/// After `shutdown`, connections may take so long to finish what they are sending.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// Serves the API until `shutdown` is ready, then closes idle connections and lets busy ones finish briefly.
pub async fn serve(listener: impl Into<Listener>, state: AppState, shutdown: impl Future<Output = ()>) {
    let limits = state.config().limits.clone();
    serve_router(listener.into(), router(state), &limits, shutdown).await;
}

/// Serves metrics alone, without keys, for a port that only the monitoring can reach.
pub async fn serve_metrics(listener: impl Into<Listener>, state: AppState, shutdown: impl Future<Output = ()>) {
    let limits = state.config().limits.clone();
    serve_router(listener.into(), metrics_router(state), &limits, shutdown).await;
}

/// Stops accepting work and waits up to `timeout` for the open requests; those that remain get a final error event.
/// Returns whether all finished in time.
pub async fn drain(state: &AppState, timeout: Duration) -> bool {
    state.begin_drain();
    let finished = state.wait_idle(timeout).await;
    let models = state.models();
    models.iter().for_each(|model| model.engine.stop());
    let ended = futures::future::join_all(models.iter().map(|model| model.engine.ended()));
    // An engine that hangs in a step is left behind; the process is about to end anyway.
    let _ = tokio::time::timeout(CLOSING_TIME, ended).await;
    if !finished {
        state.wait_idle(CLOSING_TIME).await;
    }
    if let Some(tracer) = state.tracer().cloned() {
        // What cannot be sent by then is lost; a collector that hangs does not hold up the end.
        let _ = tokio::task::spawn_blocking(move || tracer.flush(CLOSING_TIME)).await;
    }
    finished
}

async fn serve_router(listener: Listener, router: Router, limits: &Limits, shutdown: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accepted => accepted,
        };
        while connections.try_join_next().is_some() {}
        let tls = listener.tls().cloned();
        let connection = serve_accepted(accepted, tls, router.clone(), limits.clone(), closed.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop(listener);
    // Nobody listens any more when all connections are gone already.
    let _ = closing.send(true);
    let finish = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(CLOSING_TIME, finish).await;
}

/// A connection's whole life; a TLS handshake has as long as a request's headers.
async fn serve_accepted(
    accepted: Accepted,
    tls: Option<Tls>,
    router: Router,
    limits: Limits,
    closed: watch::Receiver<bool>,
) {
    match (accepted, tls) {
        (Accepted::Tcp(stream), None) => serve_connection(stream, router, limits, closed).await,
        #[cfg(unix)]
        (Accepted::Unix(stream), None) => serve_connection(stream, router, limits, closed).await,
        (Accepted::Tcp(stream), Some(tls)) => match shake_hands(stream, &tls, &limits).await {
            Some(stream) => serve_connection(stream, router, limits, closed).await,
            None => tracing::debug!("a TLS handshake failed"),
        },
        #[cfg(unix)]
        (Accepted::Unix(stream), Some(tls)) => match shake_hands(stream, &tls, &limits).await {
            Some(stream) => serve_connection(stream, router, limits, closed).await,
            None => tracing::debug!("a TLS handshake failed"),
        },
    }
}

async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(stream: S, tls: &Tls, limits: &Limits) -> Option<TlsStream<S>> {
    tokio::time::timeout(limits.header_timeout, tls.acceptor().accept(stream)).await.ok()?.ok()
}

async fn serve_connection<S>(stream: S, router: Router, limits: Limits, mut closed: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.connection_buffer_bytes)
        .serve_connection(
            TokioIo::new(PatientStream::new(stream, limits.write_timeout)),
            TowerToHyperService::new(router),
        );
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = wait_until_closed(&mut closed) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

async fn wait_until_closed(closed: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is as closed as can be.
    let _ = closed.wait_for(|&closed| closed).await.map(|_| ());
}
