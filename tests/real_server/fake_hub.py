"""A hub on this machine that tells the truth or lies, as each test asks."""

import hashlib
import http.server
import json
import random
import threading
import time

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves a folder as `org/name`. `fault` is called with a file's name and the offset asked for before every
    transfer, and returns what to do to it: None, or one of the words below."""

    # cut: half of what is left, then the end. flip: one wrong bit. long: bytes beyond the announced length.
    # 429, 503: that status. stall: a few bytes, then slowly more. away: a redirect to another host.
    FAULTS = ["cut", "flip", "long", "429", "503", "short"]

    def __init__(self, folder, fault=lambda name, start: None, elsewhere=None):
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self.fault, self.elsewhere = fault, elsewhere
        self.asked, self.transfers = [], 0
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append((self.path, dict(self.headers)))
                try:
                    hub.answer(self)
                except ConnectionError:
                    pass

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def listing(self):
        digest = lambda data: hashlib.sha256(data).hexdigest()
        entries = [
            {"rfilename": name, "size": len(data), "blobId": "f" * 40,
             "lfs": {"sha256": digest(data), "size": len(data), "pointerSize": 130}}
            for name, data in self.files.items()
        ]  # fmt: skip
        return json.dumps({"sha": COMMIT, "siblings": entries}).encode()

    def answer(self, request):
        if request.path.startswith("/api/models/org/name/"):
            return send(request, 200, self.listing())
        name = request.path.rsplit("/", 1)[1]
        if not request.path.startswith(f"/org/name/resolve/{COMMIT}/") or name not in self.files:
            return send(request, 404, b"")
        self.transfers += 1
        data, asked = self.files[name], request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        fault = self.fault(name, start)
        rest, length = bytearray(data[start:]), len(data) - start
        if fault == "away":
            request.send_response(302)
            request.send_header("Location", f"{self.elsewhere}{request.path}")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        if fault in ("429", "503"):
            return send(request, int(fault), b"", {"Retry-After": "0"})
        if fault == "flip" and rest:
            rest[random.randrange(len(rest))] ^= 1 << random.randrange(8)
        elif fault == "long":
            rest, length = rest + b"more", length + 4
        elif fault == "short":
            rest, length = rest[: len(rest) // 2], length // 2
        elif fault == "cut":
            rest = rest[: len(rest) // 2]
        request.send_response(206 if asked else 200)
        request.send_header("Content-Length", str(length))
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        for at in range(0, len(rest), 4096):
            request.wfile.write(rest[at : at + 4096])
            if fault == "stall":
                time.sleep(0.02)


def send(request, status, body, headers=None):
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
