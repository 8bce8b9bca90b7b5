//! Listening and leaving: connections with limits, and an orderly end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::limits::Limits;
use crate::patient_stream::PatientStream;
use crate::routes::{metrics_router, router};
use crate::state::AppState;

/// After `shutdown`, connections may take so long to finish what they are sending.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// Listens with room for a burst of clients; the system may allow less.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: u32 = 8192;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the old connections' time-outs.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves the API until `shutdown` is ready, then closes idle connections and lets busy ones finish briefly.
pub async fn serve(listener: TcpListener, state: AppState, shutdown: impl Future<Output = ()>) {
    let limits = state.config().limits.clone();
    serve_router(listener, router(state), &limits, shutdown).await;
}

/// Serves metrics alone, without keys, for a port that only the monitoring can reach.
pub async fn serve_metrics(listener: TcpListener, state: AppState, shutdown: impl Future<Output = ()>) {
    let limits = state.config().limits.clone();
    serve_router(listener, metrics_router(state), &limits, shutdown).await;
}

/// Stops accepting work and waits up to `timeout` for the open requests; those that remain get a final error event.
/// Returns whether all finished in time.
pub async fn drain(state: &AppState, timeout: Duration) -> bool {
    state.begin_drain();
    let finished = state.wait_idle(timeout).await;
    if let Some(model) = state.loaded() {
        model.engine.stop();
        // An engine that hangs in a step is left behind; the process is about to end anyway.
        let _ = tokio::time::timeout(CLOSING_TIME, model.engine.ended()).await;
    }
    if !finished {
        state.wait_idle(CLOSING_TIME).await;
    }
    finished
}

async fn serve_router(listener: TcpListener, router: Router, limits: &Limits, shutdown: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            (accept(&listener).await, permit)
        };
        let (stream, permit) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accepted => accepted,
        };
        while connections.try_join_next().is_some() {}
        let connection = serve_connection(stream, router.clone(), limits.clone(), closed.clone());
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

/// The next connection; errors such as too many open files pass.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Events are small and must leave at once. Failing, they would only leave later.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                report(&error);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn report(error: &io::Error) {
    let of_the_peer = matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
    if !of_the_peer {
        tracing::warn!(%error, "cannot accept connections");
    }
}

async fn serve_connection(stream: TcpStream, router: Router, limits: Limits, mut closed: watch::Receiver<bool>) {
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
