//! cargo run -p firebrick-server --example scripted_server -- 8000
//!
//! The server with a model that always says the same: for trying clients, dashboards and fuzzers without weights. With
//! `babble` behind the port it says anything at all and can be held to grammars, so that forced tool calls work.

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/server/support.rs"]
mod support;

use firebrick_engine::Script;
use firebrick_server::{ServerConfig, listen};
use support::{Server, Setup, VOCAB};

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("a port is the first argument");
    let config = ServerConfig { log_requests: false, ..ServerConfig::default() };
    let mut setup = Setup { config, prefix_caching: true, ..Setup::default() };
    if std::env::args().nth(2).is_some_and(|word| word == "babble") {
        setup.script = Script::Hash { vocab_size: VOCAB };
    }
    let listener = listen(([127, 0, 0, 1], port).into()).expect("the port is free");
    let server = Server::start_on(listener, &setup);
    server.load(&setup);
    println!("listening on http://127.0.0.1:{port}");
    // Ends with the process.
    std::future::pending::<()>().await;
}
