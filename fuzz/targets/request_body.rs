//! Requests to the whole server, with a scripted model behind it: the first line is the path, the rest is the body.
//! Every one is answered, no answer is of class 5xx, and an error is told in OpenAI's shape.
#![no_main]

mod caught;
mod served;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use served::Served;

static SERVED: LazyLock<Served> = LazyLock::new(served::babbling);

fuzz_target!(init: caught::only_what_is_not_caught_counts(), |data: &[u8]| {
    let Some(end) = data.iter().position(|&byte| byte == b'\n') else { return };
    let (path, body) = (&data[..end], &data[end + 1..]);
    let Some(path) = std::str::from_utf8(path).ok().filter(|path| served::PATHS.contains(path)) else { return };
    let (status, answer) = SERVED.post(path, body.to_vec());
    assert!(status < 500, "{status}: {}", String::from_utf8_lossy(&answer));
    if status >= 400 {
        let error: serde_json::Value = serde_json::from_slice(&answer).expect("errors are JSON");
        assert!(error["error"]["message"].is_string() || error["detail"].is_string(), "{error}");
    }
});
