//! The page at `/ui/`.

use std::sync::Arc;

use firebrick_server::{ApiKeys, PageFiles, ServerConfig};

use crate::support::{Server, Setup};

fn built_page() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("assets")).expect("a folder");
    let large = vec![b'w'; 700_000];
    let files: [(&str, &[u8]); 5] = [
        ("index.html", b"<p>page</p>"),
        ("assets/main.js", b"1"),
        ("assets/engine.wasm", &large),
        ("assets/engine.wasm.gz", b"small"),
        ("model.gguf", b"GGUF"),
    ];
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("a file");
    }
    folder
}

async fn server(folder: &tempfile::TempDir) -> Server {
    let page = Some(Arc::new(PageFiles::from_folder(folder.path()).expect("a page")));
    let config =
        ServerConfig { page, api_keys: ApiKeys::new(["user"]), log_requests: false, ..ServerConfig::default() };
    Server::start(Setup { config, ..Setup::default() }).await
}

#[tokio::test]
async fn the_page_is_there_for_everybody_with_the_headers_that_it_needs() {
    let folder = built_page();
    let server = server(&folder).await;
    for path in ["/", "/ui"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.header("location")), (307, Some("ui/")), "{path}");
    }
    for (path, kind, caching) in [
        ("/ui/", "text/html; charset=utf-8", "no-cache"),
        ("/ui/index.html", "text/html; charset=utf-8", "no-cache"),
        ("/ui/assets/main.js", "text/javascript; charset=utf-8", "public, max-age=31536000, immutable"),
        ("/ui/assets/engine.wasm", "application/wasm", "public, max-age=31536000, immutable"),
        ("/ui/model.gguf", "application/octet-stream", "no-cache"),
    ] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{path}");
        assert_eq!(reply.header("cache-control"), Some(caching), "{path}");
        assert_eq!(reply.header("cross-origin-opener-policy"), Some("same-origin"));
        assert_eq!(reply.header("cross-origin-embedder-policy"), Some("require-corp"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert!(reply.header("content-security-policy").is_some_and(|policy| policy.contains("wasm-unsafe-eval")));
    }
    assert_eq!(server.get("/ui/").await.text(), "<p>page</p>");
    let whole = server.get("/ui/assets/engine.wasm").await;
    assert_eq!((whole.body.len(), whole.header("content-length")), (700_000, Some("700000")));
    assert_eq!(whole.header("content-encoding"), None);
    let packed = server.send("GET", "/ui/assets/engine.wasm", &[("Accept-Encoding", "gzip, br")], b"").await;
    assert_eq!((packed.text(), packed.header("content-encoding")), ("small".to_owned(), Some("gzip")));
    assert_eq!(packed.header("content-type"), Some("application/wasm"));
    assert_eq!(server.send("HEAD", "/ui/", &[], b"").await.status, 200);
}

#[tokio::test]
async fn nothing_but_the_page_is_served() {
    let folder = built_page();
    let secret = folder.path().with_extension("secret");
    std::fs::write(&secret, "secret").expect("a file");
    let name = secret.file_name().and_then(|name| name.to_str()).expect("a plain name");
    let server = server(&folder).await;
    for path in [
        format!("/ui/../{name}"),
        format!("/ui/%2e%2e/{name}"),
        format!("/ui/..%2f{name}"),
        format!("/ui/assets/..%2f..%2f{name}"),
        format!("/ui/{}", secret.display()),
        format!("/ui//{}", secret.display()),
        "/ui/assets".to_owned(),
        "/ui/assets/".to_owned(),
        "/ui/none".to_owned(),
        "/ui/%00".to_owned(),
    ] {
        let reply = server.get(&path).await;
        assert!(matches!(reply.status, 400 | 404), "{path}: {}", reply.status);
        assert!(!reply.text().contains("secret"), "{path}");
    }
    std::fs::remove_file(&secret).expect("it is ours");
    // A file that has gone since is missing, not an error of ours.
    std::fs::remove_file(folder.path().join("model.gguf")).expect("it is ours");
    assert_eq!(server.get("/ui/model.gguf").await.status, 404);
}

#[tokio::test]
async fn without_a_page_there_is_no_such_path() {
    let server = Server::start(Setup::default()).await;
    for path in ["/", "/ui", "/ui/", "/ui/index.html"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
}
