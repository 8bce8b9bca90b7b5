//! cargo run -p firebrick-server --example scripted_server -- 8000
//!
//! The server with a model that always says the same: for trying clients, dashboards and fuzzers without weights. With
//! `babble` behind the port it says anything at all and can be held to grammars, so that forced tool calls work. With a
//! number, its steps take so many milliseconds and it never ends: what streams cost can then be measured.

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/server/support.rs"]
mod support;

use firebrick_engine::Script;
use firebrick_server::{ServerConfig, listen};
use support::{Server, Setup, VOCAB, repeats};

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("a port is the first argument");
    let config = ServerConfig { log_requests: false, ..ServerConfig::default() };
    let mut setup = Setup { config, prefix_caching: true, ..Setup::default() };
    match std::env::args().nth(2).as_deref() {
        None => {}
        Some("babble") => setup.script = Script::Hash { vocab_size: VOCAB },
        Some(step_ms) => {
            setup.step_ms = step_ms.parse().expect("after the port comes `babble` or milliseconds");
            setup.script = repeats(b'a');
        }
    }
    let listener = listen(([127, 0, 0, 1], port).into()).expect("the port is free");
    let server = Server::start_on(listener, &setup);
    server.load(&setup);
    println!("listening on http://127.0.0.1:{port}");
    // Ends with the process.
    std::future::pending::<()>().await;
}
