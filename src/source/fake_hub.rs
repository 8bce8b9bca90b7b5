//! A hub on this machine that answers as it is told, also wrongly, and remembers what it was asked.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

/// One answer to one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The file, with ranges.
    File(Vec<u8>),
    /// The file, whatever range is asked for.
    Whole(Vec<u8>),
    /// The file, broken off after so many bytes.
    Broken(Vec<u8>, usize),
    /// A status with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// JSON.
    Json(Value),
}

/// A request's path and its headers.
pub type Asked = (String, HashMap<String, String>);

/// The hub; its threads end with the tests.
pub struct FakeHub {
    pub url: String,
    replies: Arc<Mutex<HashMap<String, VecDeque<Reply>>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// What the tests' commit is called.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl FakeHub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let hub = Self { url, replies: Arc::default(), asked: Arc::default() };
        let (replies, asked) = (hub.replies.clone(), hub.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (replies, asked) = (replies.clone(), asked.clone());
                std::thread::spawn(move || serve(stream, &replies, &asked));
            }
        });
        hub
    }

    /// Answers to a path, one after the other; the last one stays.
    pub fn on(&self, path: &str, replies: &[Reply]) {
        self.replies.lock().expect("not poisoned").insert(path.to_owned(), replies.to_vec().into());
    }

    /// Lists `org/name` with these large files, as they are announced.
    pub fn lists(&self, files: &[(&str, &[u8])]) {
        let sibling = |(name, bytes): &(&str, &[u8])| {
            let sha256 = hex(digest(&SHA256, bytes).as_ref());
            json!({"rfilename": name, "size": bytes.len(), "blobId": "f".repeat(40),
                   "lfs": {"sha256": sha256, "size": bytes.len(), "pointerSize": 130}})
        };
        let siblings: Vec<Value> = files.iter().map(sibling).collect();
        let listing = Reply::Json(json!({"sha": COMMIT, "siblings": siblings}));
        self.on("/api/models/org/name/revision/main?blobs=true", &[listing]);
    }

    /// Answers for one of the model's files.
    pub fn serves(&self, name: &str, replies: &[Reply]) {
        self.on(&format!("/org/name/resolve/{COMMIT}/{name}"), replies);
    }

    /// The requests so far for paths that end so.
    pub fn asked(&self, end: &str) -> Vec<Asked> {
        let asked = self.asked.lock().expect("not poisoned");
        asked.iter().filter(|(path, _)| path.ends_with(end)).cloned().collect()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(stream: TcpStream, replies: &Mutex<HashMap<String, VecDeque<Reply>>>, asked: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let from = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
    asked.lock().expect("not poisoned").push((path.clone(), headers));
    let reply = replies.lock().expect("not poisoned").get_mut(&path).and_then(|replies| match replies.len() {
        1 => replies.front().cloned(),
        _ => replies.pop_front(),
    });
    let reply = reply.unwrap_or(Reply::Status(404, Vec::new()));
    // A client that has left has its reasons.
    let _ = answer(&mut reader.into_inner(), reply, from);
}

fn answer(stream: &mut TcpStream, reply: Reply, from: Option<usize>) -> std::io::Result<()> {
    let (status, headers, body, sent) = match (reply, from) {
        (Reply::File(bytes), Some(from)) if from >= bytes.len() => (416, Vec::new(), Vec::new(), 0),
        (Reply::File(bytes), Some(from)) => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            let rest = bytes[from..].to_vec();
            let length = rest.len();
            (206, vec![("content-range", range)], rest, length)
        }
        (Reply::File(bytes) | Reply::Whole(bytes), _) => {
            let length = bytes.len();
            (200, Vec::new(), bytes, length)
        }
        (Reply::Broken(bytes, after), _) => (200, Vec::new(), bytes, after),
        (Reply::Status(status, headers), _) => (status, headers, Vec::new(), 0),
        (Reply::Json(value), _) => {
            let bytes = value.to_string().into_bytes();
            let length = bytes.len();
            (200, Vec::new(), bytes, length)
        }
    };
    let mut head = format!("HTTP/1.1 {status} Told\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&body[..sent])
}
