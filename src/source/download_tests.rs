use std::path::Path;
use std::time::Duration;

use super::*;
use crate::source::fake_hub::{COMMIT, FakeHub, Reply, hex};

const CONFIG: &[u8] = b"{\"model_type\": \"llama\"}";
const TOKENIZER: &[u8] = b"{}";

fn weights() -> Vec<u8> {
    (0..300_000_u32).map(|number| (number * 31 % 251) as u8).collect()
}

/// A hub with a small model whose weights are answered as told.
fn hub_with(replies: &[Reply]) -> FakeHub {
    let hub = FakeHub::start();
    hub.lists(&[("config.json", CONFIG), ("tokenizer.json", TOKENIZER), ("model.safetensors", &weights())]);
    hub.serves("config.json", &[Reply::File(CONFIG.to_vec())]);
    hub.serves("tokenizer.json", &[Reply::File(TOKENIZER.to_vec())]);
    hub.serves("model.safetensors", replies);
    hub
}

fn client(hub: &FakeHub) -> Hub {
    let patience =
        Patience { pause: Duration::from_millis(1), idle: Duration::from_millis(500), ..Patience::default() };
    Hub::new(&hub.url, Some("secret-token".to_owned()), patience)
}

fn fetch_into(hub: &FakeHub, cache: &Path) -> Result<PathBuf, String> {
    let id = HubId::parse("org/name", None).expect("an id");
    fetch_from(&client(hub), &id, cache, &mut |_| ()).map_err(|failure| failure.message)
}

fn fetch_once(replies: &[Reply]) -> (FakeHub, tempfile::TempDir, Result<PathBuf, String>) {
    let (hub, cache) = (hub_with(replies), tempfile::tempdir().expect("a temporary folder"));
    let result = fetch_into(&hub, cache.path());
    (hub, cache, result)
}

fn blobs(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache.join("models--org--name/blobs")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_model_arrives_in_the_layout_that_all_tools_of_the_hub_share() {
    let (hub, cache, result) = fetch_once(&[Reply::File(weights())]);
    let snapshot = result.expect("a model");
    assert_eq!(snapshot, cache.path().join("models--org--name/snapshots").join(COMMIT));
    assert_eq!(fs::read(snapshot.join("model.safetensors")).expect("a file"), weights());
    let link = fs::read_link(snapshot.join("config.json")).expect("a link");
    let digest = hex(ring::digest::digest(&ring::digest::SHA256, CONFIG).as_ref());
    assert_eq!(link, Path::new("../../blobs").join(digest));
    let id = HubId::parse("org/name", None).expect("an id");
    assert_eq!(super::super::cache::find(cache.path(), &id), Some(snapshot));
    assert_eq!(blobs(cache.path()).len(), 3, "nothing is left over");
    // What is there is not asked for again.
    fetch_into(&hub, cache.path()).expect("a model");
    assert_eq!(hub.asked("model.safetensors").len(), 1);
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_it_redirects_to() {
    let elsewhere = FakeHub::start();
    elsewhere.on("/bytes?signed=1", &[Reply::File(weights())]);
    let location = format!("{}/bytes?signed=1", elsewhere.url);
    let (hub, _cache, result) = fetch_once(&[Reply::Status(302, vec![("location", location)])]);
    result.expect("a model");
    for (path, headers) in hub.asked("") {
        assert_eq!(headers.get("authorization").map(String::as_str), Some("Bearer secret-token"), "{path}");
    }
    let asked = elsewhere.asked("");
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].1.contains_key("authorization"), "{:?}", asked[0]);
}

#[test]
fn a_redirect_on_the_same_hub_keeps_the_token() {
    let hub = hub_with(&[Reply::Status(307, vec![("location", "/moved".to_owned())])]);
    hub.on("/moved", &[Reply::File(weights())]);
    let cache = tempfile::tempdir().expect("a temporary folder");
    fetch_into(&hub, cache.path()).expect("a model");
    assert!(hub.asked("/moved")[0].1.contains_key("authorization"));
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_ended() {
    let (hub, _cache, result) = fetch_once(&[Reply::Broken(weights(), 100_000), Reply::File(weights())]);
    let path = result.expect("a model").join("model.safetensors");
    assert_eq!(fs::read(path).expect("a file"), weights());
    let asked = hub.asked("model.safetensors");
    assert!(!asked[0].1.contains_key("accept-encoding"), "ranges count the file's own bytes");
    assert_eq!(asked[1].1.get("range").map(String::as_str), Some("bytes=100000-"));
}

#[test]
fn what_an_earlier_process_has_brought_is_used() {
    let (hub, cache) = (hub_with(&[Reply::File(weights())]), tempfile::tempdir().expect("a temporary folder"));
    let folder = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&folder).expect("a folder");
    let digest = hex(ring::digest::digest(&ring::digest::SHA256, &weights()).as_ref());
    fs::write(folder.join(format!("{digest}.part")), &weights()[..200_000]).expect("a file");
    let path = fetch_into(&hub, cache.path()).expect("a model").join("model.safetensors");
    assert_eq!(fs::read(path).expect("a file"), weights());
    assert_eq!(hub.asked("model.safetensors")[0].1.get("range").map(String::as_str), Some("bytes=200000-"));
}

#[test]
fn a_hub_without_ranges_begins_again() {
    let (_hub, _cache, result) = fetch_once(&[Reply::Broken(weights(), 100_000), Reply::Whole(weights())]);
    let path = result.expect("a model").join("model.safetensors");
    assert_eq!(fs::read(path).expect("a file"), weights());
}

#[test]
fn wrong_content_of_the_right_length_never_gets_a_name() {
    let mut wrong = weights();
    wrong[150_000] ^= 1;
    let (hub, cache, result) = fetch_once(&[Reply::File(wrong)]);
    let message = result.expect_err("one bit is wrong");
    assert!(message.contains("model.safetensors arrived damaged"), "{message}");
    assert_eq!(blobs(cache.path()).len(), 2, "neither the file nor its part stays");
    assert_eq!(hub.asked("model.safetensors").len(), 5);
    assert!(!cache.path().join("models--org--name/refs/main").exists(), "a model that is not whole has no name");
}

#[test]
fn a_single_damaged_transfer_is_repeated() {
    let mut wrong = weights();
    wrong[0] ^= 1;
    let (_hub, _cache, result) = fetch_once(&[Reply::File(wrong), Reply::File(weights())]);
    assert_eq!(fs::read(result.expect("a model").join("model.safetensors")).expect("a file"), weights());
}

#[test]
fn more_or_fewer_bytes_than_announced_are_refused() {
    let longer = [weights(), vec![0; 1000]].concat();
    let shorter = weights()[..1000].to_vec();
    for wrong in [longer, shorter] {
        let (_hub, cache, result) = fetch_once(&[Reply::Whole(wrong)]);
        assert!(result.is_err());
        assert!(blobs(cache.path()).iter().filter(|name| !name.ends_with(".part")).count() == 2);
    }
}

#[test]
fn a_busy_hub_is_asked_again_and_its_advice_is_taken() {
    let busy = Reply::Status(429, vec![("retry-after", "0".to_owned())]);
    let down = Reply::Status(503, Vec::new());
    let (hub, _cache, result) = fetch_once(&[busy, down.clone(), Reply::File(weights())]);
    result.expect("a model");
    assert_eq!(hub.asked("model.safetensors").len(), 3);
    let (hub, _cache, result) = fetch_once(&[down]);
    assert!(result.expect_err("it stays down").contains("503"));
    assert_eq!(hub.asked("model.safetensors").len(), 5);
}

#[test]
fn refusals_are_not_repeated_and_say_what_helps() {
    let (hub, _cache, result) = fetch_once(&[Reply::Status(403, Vec::new())]);
    assert!(result.expect_err("gated").contains("is gated"));
    assert_eq!(hub.asked("model.safetensors").len(), 1);
}

#[test]
fn circles_are_left() {
    let location = format!("/org/name/resolve/{COMMIT}/model.safetensors");
    let (hub, _cache, result) = fetch_once(&[Reply::Status(302, vec![("location", location)])]);
    assert!(result.expect_err("a circle").contains("redirects more than"));
    assert_eq!(hub.asked("model.safetensors").len(), 11);
}

#[test]
fn a_listing_cannot_name_a_place_outside_the_cache() {
    let (hub, cache) = (FakeHub::start(), tempfile::tempdir().expect("a temporary folder"));
    let listing = |sha: &str, name: &str| {
        let siblings = serde_json::json!([{"rfilename": name, "size": 2, "blobId": "../../../x"}]);
        Reply::Json(serde_json::json!({"sha": sha, "siblings": siblings}))
    };
    let path = "/api/models/org/name/revision/main?blobs=true";
    hub.on(path, &[listing("../../evil", "model.safetensors")]);
    assert!(fetch_into(&hub, cache.path()).expect_err("refused").contains("does not answer like"));
    hub.on(path, &[listing(COMMIT, "../model.safetensors")]);
    assert!(fetch_into(&hub, cache.path()).is_err());
    assert_eq!(fs::read_dir(cache.path()).expect("the cache").count(), 0);
}

#[test]
fn what_is_not_a_listing_is_no_hub() {
    let (hub, cache) = (FakeHub::start(), tempfile::tempdir().expect("a temporary folder"));
    hub.on("/api/models/org/name/revision/main?blobs=true", &[Reply::Json(serde_json::json!({"a": 1}))]);
    assert!(fetch_into(&hub, cache.path()).expect_err("refused").contains("does not answer like"));
}

#[test]
fn small_files_are_checked_by_gits_digest() {
    let hub = FakeHub::start();
    let text = b"{\"a\": 1}";
    let framed = [format!("blob {}\0", text.len()).as_bytes(), text].concat();
    let sha1 = hex(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &framed).as_ref());
    let siblings = serde_json::json!([{"rfilename": "x.gguf", "size": text.len(), "blobId": sha1}]);
    let listing = Reply::Json(serde_json::json!({"sha": COMMIT, "siblings": siblings}));
    hub.on("/api/models/org/name/revision/main?blobs=true", &[listing]);
    hub.serves("x.gguf", &[Reply::File(b"{\"a\": 2}".to_vec())]);
    let cache = tempfile::tempdir().expect("a temporary folder");
    assert!(fetch_into(&hub, cache.path()).expect_err("another content").contains("damaged"));
    hub.serves("x.gguf", &[Reply::File(text.to_vec())]);
    fetch_into(&hub, cache.path()).expect("the right one");
}

#[test]
fn two_processes_do_not_write_the_same_file() {
    let (hub, cache) = (hub_with(&[Reply::File(weights())]), tempfile::tempdir().expect("a temporary folder"));
    let folder = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&folder).expect("a folder");
    let digest = hex(ring::digest::digest(&ring::digest::SHA256, CONFIG).as_ref());
    let other = fs::File::create(folder.join(format!("{digest}.part"))).expect("a file");
    other.lock().expect("nobody else has it");
    assert!(fetch_into(&hub, cache.path()).expect_err("in use").contains("another program"));
    drop(other);
    fetch_into(&hub, cache.path()).expect("a model");
}
