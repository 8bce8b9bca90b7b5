"""The real binary as a process on a real port, and clients that show the bytes."""

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time

import tiny_model

BINARY = os.environ.get("FIREBRICK", "target/debug/firebrick")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Server:
    """`firebrick serve` with a tiny model; a context manager that ends the process."""

    def __init__(self, *flags, model=None, environment=None, wait=True, without=()):
        self.folder = tempfile.TemporaryDirectory(prefix="firebrick-test-")
        root = pathlib.Path(self.folder.name)
        self.model = model or tiny_model.write(root / "tiny")
        self.log_path = root / "server.log"
        command = [os.path.abspath(BINARY), "serve", str(self.model), *flags]
        usual = {"--port": "0", "--device": "cpu", "--num-gpu-blocks-override": "4096", "--served-model-name": "tiny"}
        for flag, value in usual.items():
            command += [] if flag in flags or flag in without else [flag, value]
        # A home of its own: no test sees what another left, nor touches the user's cache.
        variables = {**os.environ, "XDG_CACHE_HOME": str(root / "cache"), "HF_HOME": str(root / "hub"), "NO_COLOR": "1"}
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**variables, **(environment or {})}, cwd=root,
            )  # fmt: skip
        self.port = None
        if wait:
            self.wait_ready()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_path.read_text(errors="replace"))

    def wait_port(self, seconds=30):
        """The port that the log names."""

        def named():
            found = re.search(r"listening on https?://[^ ;]*:(\d+)", self.log())
            assert found or self.process.poll() is None, f"the server ended: {self.log()}"
            return found and int(found[1])

        self.port = wait_for(named, "the port", seconds)
        return self.port

    def wait_ready(self, seconds=60):
        self.wait_port(seconds)
        wait_for(lambda: self.get("/ready")[0] == 200 or self.check_alive(), "a loaded model", seconds)

    def check_alive(self):
        assert self.process.poll() is None, f"the server ended: {self.log()}"

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, bytes) of a whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **(headers or {})} if body is not None else headers or {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, body, **options):
        return self.request("POST", path, body, **options)

    def complete(self, **fields):
        """The parsed answer of /v1/completions, which must succeed."""
        fields.setdefault("path", "/v1/completions")
        path = fields.pop("path")
        status, _, body = self.post(path, completion(**fields))
        assert status == 200, (status, body)
        return json.loads(body)

    def text(self, **fields):
        return self.complete(**fields)["choices"][0]["text"]

    def open_stream(self, **fields):
        """A socket on which an answer is about to stream; the caller reads it, or does not."""
        return self.send_raw(self.raw_request(completion(stream=True, **fields)))

    def raw_request(self, body, path="/v1/completions"):
        body = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def send_raw(self, data, receive_buffer=None):
        stream = socket.socket()
        if receive_buffer:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        stream.settimeout(60)
        stream.connect(("127.0.0.1", self.port))
        if data:
            stream.sendall(data)
        return stream

    def metrics(self):
        """Every series of /metrics by its whole name with labels."""
        text = self.get("/metrics")[2].decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def metric(self, start):
        found = [value for name, value in self.metrics().items() if name.startswith(start)]
        assert found, f"no series {start}"
        return sum(found)

    def is_idle(self):
        metrics = self.metrics()
        gauges = ["vllm:num_requests_running", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc"]
        return all(value == 0 for name, value in metrics.items() if any(name.startswith(gauge) for gauge in gauges))

    def wait_idle(self, seconds=10):
        """Until nothing runs or waits and every block is free."""
        wait_for(self.is_idle, "an idle engine with every block free", seconds)

    def rss_kb(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.pid}/status").read_text())[1])

    def num_files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def num_threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait_end(self, seconds=40):
        return self.process.wait(seconds)


def run_to_end(*arguments, seconds=60, environment=None):
    """(exit code, output) of the binary with these arguments."""
    done = subprocess.run(
        [os.path.abspath(BINARY), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        timeout=seconds, env={**os.environ, "NO_COLOR": "1", **(environment or {})},
    )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="replace")


def completion(**fields):
    return {"model": "tiny", "prompt": "Once", "temperature": 0, "ignore_eos": True, "max_tokens": 16, **fields}


def read_all(stream):
    """Everything until the end of the connection; a reset ends it too."""
    received = bytearray()
    try:
        while chunk := stream.recv(1 << 16):
            received += chunk
    except ConnectionError:
        pass
    stream.close()
    return bytes(received)


def read_some(stream, marker, seconds=20):
    """What came until `marker` was in it."""
    received = bytearray()
    deadline = time.monotonic() + seconds
    while marker not in received:
        assert time.monotonic() < deadline, f"no {marker} in {bytes(received)[-300:]}"
        chunk = stream.recv(1 << 14)
        assert chunk, f"the stream ended without {marker}: {bytes(received)[-300:]}"
        received += chunk
    return bytes(received)


def events(raw):
    """The JSON events of a streamed answer as it came over the wire, and whether it ended with [DONE]."""
    data = re.findall(rb"data: (.*?)\n\n", raw, re.S)
    return [json.loads(event) for event in data if event != b"[DONE]"], b"[DONE]" in data


def streamed_text(raw, choice=0):
    parsed, done = events(raw)
    assert done, raw[-300:]
    errors = [event["error"] for event in parsed if event.get("error")]
    assert not errors, errors
    choices = [event["choices"][0] for event in parsed if event["choices"]]
    return "".join(one["text"] for one in choices if one["index"] == choice)


def wait_for(condition, what, seconds):
    """Polls until the condition gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except (ConnectionError, http.client.HTTPException, socket.timeout):
            pass
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
