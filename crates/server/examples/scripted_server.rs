//! `cargo run -p firebrick-server --example scripted_server -- 8000`
//!
//! The whole HTTP server around a model that follows a script: for trying clients without weights. The model is called
//! `tiny`; every answer is a pseudo-random function of the prompt and the seed. A second argument paces the steps in
//! milliseconds.

use std::time::Duration;

use firebrick_engine::Script;
use firebrick_server::{EngineThreadOptions, drain, listen};

#[allow(dead_code, reason = "the example needs only the part of the test support that makes servers")]
#[path = "../tests/server/support.rs"]
mod support;

use support::{Server, Setup};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let argument = |number| std::env::args().nth(number).and_then(|text| text.parse::<u64>().ok());
    let port = argument(1).unwrap_or(8000) as u16;
    let setup = Setup {
        script: Script::Hash { vocab_size: 128 },
        step_ms: argument(2).unwrap_or(0),
        blocks: 65_536,
        max_waiting: 100_000,
        prefix_caching: true,
        options: EngineThreadOptions { inbox_max: 16_384, ..EngineThreadOptions::default() },
        ..Setup::default()
    };
    let server = Server::start_on(listen(([127, 0, 0, 1], port).into())?, &setup);
    server.load(&setup);
    println!("http://127.0.0.1:{}/v1, model tiny", server.port);
    let stopped = tokio::signal::ctrl_c().await;
    drain(&server.state, Duration::from_secs(30)).await;
    stopped
}
