"""Runs real clients against the real binary and says which versions passed.

    python3 tests/clients/run.py path/to/firebrick FOLDER [client ...]

FOLDER holds what `scripts/test-clients.sh` installs: `python` (a virtual environment) and `node`. Without names all clients
run; the table in README.md must then list each with its version.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real_server"))
KEY = "a-key"


def main():
    os.environ["FIREBRICK"] = os.path.abspath(sys.argv[1])
    import server

    folder = pathlib.Path(sys.argv[2]).resolve()
    wanted = sys.argv[3:]
    failed, passed, rows = 0, 0, []
    # Node finds packages beside the script, not by a search path.
    scripts = pathlib.Path(tempfile.mkdtemp(dir=folder / "node"))
    for path in HERE.glob("*.mjs"):
        shutil.copy(path, scripts)
    with server.Server("--api-key", KEY, "--host", "127.0.0.1") as running:
        clients = Clients(folder, scripts, running)
        for name, check in clients.table():
            if wanted and name not in wanted:
                continue
            begun = time.monotonic()
            try:
                version, problem = check(), None
            except Exception as error:
                version, problem = "", error
            seconds = time.monotonic() - begun
            failed, passed = failed + bool(problem), passed + (not problem)
            print(f"{'FAILED' if problem else 'ok':7} {seconds:5.1f} s  {name} {version}", flush=True)
            if problem:
                print(problem)
            rows.append((name, version))
        if not wanted and not failed:
            check_readme(rows)
        status = running.get("/health")[0]
        assert status == 200 and "panicked" not in running.log(), running.log()
    shutil.rmtree(scripts)
    print(f"clients: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


def check_readme(rows):
    """The README has exactly these clients; versions that Debian chooses may differ from machine to machine."""
    lines = [f"| {name} | {version} |" for name, version in rows]
    print("\n".join(["", *lines, ""]))
    readme = (HERE.parents[1] / "README.md").read_text()
    section = readme.split("| client | version |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    from_debian = ("| Prometheus |", "| nginx in front |")
    ours, theirs = ([line for line in table if not line.startswith(from_debian)] for table in (lines, section))
    assert ours == theirs and len(lines) == len(section), "README.md does not list these clients with these versions"


class Clients:
    def __init__(self, folder, scripts, running):
        self.folder, self.scripts, self.server = folder, scripts, running
        self.root = f"http://127.0.0.1:{running.port}"
        self.url = f"{self.root}/v1"

    def table(self):
        python = lambda package, script: lambda: self.python(package, script)
        node = lambda package, script: lambda: self.node(package, script)
        return [
            ("openai (Python)", lambda: self.openai()),
            ("anthropic (Python)", lambda: self.anthropic()),
            ("litellm", python("litellm", "client_litellm.py")),
            ("langchain-openai", python("langchain-openai", "client_langchain.py")),
            ("instructor", python("instructor", "client_instructor.py")),
            ("llama-index-llms-openai-like", python("llama-index-llms-openai-like", "client_llama_index.py")),
            ("openai (Node)", node("openai", "client_openai.mjs")),
            ("ai with @ai-sdk/openai-compatible", node("@ai-sdk/openai-compatible", "client_ai_sdk.mjs")),
            ("guidellm", self.guidellm),
            ("vllm bench serve", self.vllm_bench),
            ("schemathesis", self.schemathesis),
            ("Prometheus", self.prometheus),
            ("nginx in front", self.nginx),
        ]

    def run(self, *command, seconds=300, **options):
        """Standard output; anything but success is an error with both outputs in it."""
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1",
            "AI_SDK_LOG_WARNINGS": "false", "PYTHONDONTWRITEBYTECODE": "", "GUIDELLM__MAX_WORKER_PROCESSES": "1", **options.pop("environment", {}),
        }  # fmt: skip
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=seconds, env=environment, **options
        )
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def version(self, package):
        program = f"import importlib.metadata as m; print(m.version({package!r}))"
        return self.run(self.folder / "python" / "bin" / "python", "-c", program).strip()

    def openai(self):
        script = HERE.parent / "python" / "openai_client.py"
        self.run(self.folder / "python" / "bin" / "python", script, self.url, "tiny", KEY)
        return self.version("openai")

    def anthropic(self):
        script = HERE.parent / "python" / "anthropic_client.py"
        self.run(self.folder / "python" / "bin" / "python", script, self.root, "tiny", KEY)
        return self.version("anthropic")

    def python(self, package, script):
        self.run(self.folder / "python" / "bin" / "python", HERE / script, self.url, "tiny", KEY)
        return self.version(package)

    def node(self, package, script):
        self.run("node", self.scripts / script, self.url, "tiny", KEY)
        return json.loads((self.folder / "node" / "node_modules" / package / "package.json").read_text())["version"]

    def guidellm(self):
        with tempfile.TemporaryDirectory() as output:
            self.run(
                self.folder / "python" / "bin" / "guidellm", "run", "--disable-console",
                "--backend", f"kind=openai_http,target={self.root},model=tiny,api_key={KEY}",
                "--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=24",
                "--tokenizer", f"kind=huggingface_auto,model={self.server.model}",
                "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
                "--output", f"kind=json,path={output}/report.json", "--data-loader", "kind=pytorch,num_workers=0",
                # Prompts come in order from the process itself, which is all it would use PyTorch for.
                environment={"PYTHONPATH": str(HERE / "stand_in"), "USE_TORCH": "0"},
            )  # fmt: skip
            report = json.loads(pathlib.Path(output, "report.json").read_text())
            totals = report["benchmarks"][0]["metrics"]["request_totals"]
            assert totals["successful"] == 24 and totals["errored"] == 0, totals
        return self.version("guidellm")

    def vllm_bench(self):
        with tempfile.TemporaryDirectory() as folder:
            # The tokenizer alone: reading a whole model's configuration belongs to the engine.
            for path in pathlib.Path(self.server.model).glob("tokenizer*"):
                shutil.copy(path, folder)
            for backend, endpoint in (("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
                self.run(
                    self.folder / "python" / "bin" / "python", HERE / "client_vllm_bench.py", "--backend", backend,
                    "--endpoint", endpoint, "--base-url", self.root, "--model", "tiny", "--tokenizer", folder,
                    "--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "16", "--num-prompts", "24",
                    "--max-concurrency", "4", "--request-rate", "100", "--ignore-eos", "--save-result", "--disable-tqdm",
                    "--result-filename", f"{folder}/report.json", environment={"OPENAI_API_KEY": KEY},
                )  # fmt: skip
                report = json.loads(pathlib.Path(folder, "report.json").read_text())
                assert report["completed"] == 24 and report["failed"] == 0, report
                assert report["total_output_tokens"] == 24 * 16 and report["median_ttft_ms"] > 0, report
        return self.version("vllm")

    def schemathesis(self):
        # It keeps examples in the current folder.
        self.run(
            self.folder / "python" / "bin" / "schemathesis", "run", f"{self.root}/openapi.json", "--header",
            f"Authorization: Bearer {KEY}", "--max-examples", "20", "--checks", "not_a_server_error",
            "--exclude-path-regex", "^/admin", "--request-timeout", "20", "--seed", "1", "--no-color",
            cwd=self.scripts,
        )  # fmt: skip
        return self.version("schemathesis")

    def prometheus(self):
        text = self.run("curl", "-sf", "-H", f"Authorization: Bearer {KEY}", f"{self.root}/metrics")
        # Names with colons are vLLM's; only errors of form count.
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        assert checked.returncode in (0, 3) and "error while linting" not in checked.stderr, checked.stderr
        with tempfile.TemporaryDirectory() as folder, free_port() as port:
            config = pathlib.Path(folder, "prometheus.yml")
            config.write_text(
                "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: firebrick\n"
                f"  authorization: {{credentials: {KEY}}}\n"
                f"  static_configs: [{{targets: ['127.0.0.1:{self.server.port}']}}]\n"
            )
            port.release()
            flags = [f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
            process = subprocess.Popen(
                ["prometheus", *flags, f"--web.listen-address=127.0.0.1:{port.number}"], stderr=subprocess.DEVNULL
            )
            try:
                query = f"http://127.0.0.1:{port.number}/api/v1/query?query="
                wait_for(lambda: value_of(query + "up") == 1, 20)
                assert value_of(query + "sum(vllm:generation_tokens_total)") is not None
                assert value_of(query + "vllm:kv_cache_usage_perc") is not None
            finally:
                process.kill()
                process.wait()
        return re.search(r"version (\S+)", self.run("prometheus", "--version"))[1]

    def nginx(self):
        with tempfile.TemporaryDirectory() as folder, free_port() as port:
            port.release()
            config = pathlib.Path(folder, "nginx.conf")
            config.write_text(
                f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
                f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
                f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
                f"upstream firebrick {{ server 127.0.0.1:{self.server.port}; keepalive 8; }}\n"
                f"server {{ listen 127.0.0.1:{port.number}; location / {{ proxy_pass http://firebrick;\n"
                'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } } }\n'
            )
            process = subprocess.Popen(["nginx", "-c", config, "-p", folder], stderr=subprocess.DEVNULL)
            try:
                url = f"http://127.0.0.1:{port.number}"
                wait_for(lambda: subprocess.run(["curl", "-sf", f"{url}/health"], capture_output=True).returncode == 0, 10)
                self.run(self.folder / "python" / "bin" / "python", HERE.parent / "python" / "openai_client.py", f"{url}/v1", "tiny", KEY)
                self.run("node", self.scripts / "client_openai.mjs", f"{url}/v1", "tiny", KEY)
                # A client that leaves nginx leaves the engine too.
                long = {"prompt": "Once", "max_tokens": 12000, "ignore_eos": True, "stream": True}
                subprocess.run(
                    ["curl", "-s", "--max-time", "0.5", f"{url}/v1/completions", "-H", f"Authorization: Bearer {KEY}",
                     "-H", "Content-Type: application/json", "-d", json.dumps(long)], capture_output=True,
                )  # fmt: skip
                wait_for(lambda: self.is_idle(), 3)
            finally:
                process.terminate()
                process.wait()
        return re.search(r"nginx/(\S+)", subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr)[1]

    def is_idle(self):
        text = self.run("curl", "-sf", "-H", f"Authorization: Bearer {KEY}", f"{self.root}/metrics")
        return all(
            line.endswith(" 0") or line.endswith(" 0.0")
            for line in text.splitlines()
            if line.startswith(("vllm:num_requests_running", "vllm:kv_cache_usage_perc"))
        )


def value_of(url):
    """The first value that Prometheus finds; None where there is none yet."""
    done = subprocess.run(["curl", "-sfg", url], capture_output=True, text=True)
    found = json.loads(done.stdout)["data"]["result"] if done.returncode == 0 else []
    return float(found[0]["value"][1]) if found else None


class free_port:
    """A port that nobody uses, kept until it is released."""

    def __enter__(self):
        import socket

        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.number = self.socket.getsockname()[1]
        return self

    def release(self):
        self.socket.close()

    def __exit__(self, *_):
        self.release()


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
