//! cargo run -p firebrick-server --example scripted_server -- 8000
//!
//! The server with a model that always says the same: for trying clients, dashboards and fuzzers without weights.

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/server/support.rs"]
mod support;

use firebrick_server::{ServerConfig, listen};
use support::{Server, Setup};

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("the port is the only argument");
    let config = ServerConfig { log_requests: false, ..ServerConfig::default() };
    let setup = Setup { config, prefix_caching: true, ..Setup::default() };
    let listener = listen(([127, 0, 0, 1], port).into()).expect("the port is free");
    let server = Server::start_on(listener, &setup);
    server.load(&setup);
    println!("listening on http://127.0.0.1:{port}");
    // Ends with the process.
    std::future::pending::<()>().await;
}
