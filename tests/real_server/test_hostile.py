"""Hostile requests against a real process: each is refused or answered at once, and the server is well afterwards.

The cases stand in `hostile/`; what is too long for a table is made here. `FIREBRICK_FUZZ_SECONDS` lengthens the run of
mutated bodies, `FIREBRICK_FUZZ_SEED` chooses another.
"""

import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import time
import unittest

from server import Server, read_all

HERE = pathlib.Path(__file__).resolve().parent
CORPUS = HERE.parent / "corpus" / "bodies"
SECONDS_MAX = 2.0

BASES = {
    "/v1/completions": {"prompt": "Once", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/embeddings": {"input": "a"},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
    "/generate": {"prompt": "Once", "max_tokens": 2},
    "/batch_generate": {"prompts": ["Once"], "max_tokens": 2},
    "/v1/responses": {"model": "tiny", "input": "a", "max_output_tokens": 2},
    "/v1/messages": {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": [{"role": "user", "content": "a"}]},
}


def rows(name, columns):
    for number, line in enumerate((HERE / "hostile" / name).read_text().splitlines(), 1):
        if line and not line.startswith("#"):
            fields = line.split(" | ")
            fields += [""] * (columns - len(fields))
            yield number, [*fields[: columns - 1], " | ".join(fields[columns - 1 :])] if name != "wire.txt" else fields


def unescaped(text):
    escape = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}
    parts = re.split(r"(\\x[0-9a-f]{2}|\\[rnt\\])", text)
    found = (bytes([int(part[2:], 16)]) if part[:2] == "\\x" else escape.get(part[1:2]) if part[:1] == "\\" and len(part) == 2 else part.encode() for part in parts)
    return b"".join(found)


class Asker:
    """One kept connection; opened again when the server has closed it."""

    def __init__(self, server):
        self.server, self.connection = server, None

    def ask(self, path, body):
        """(status, bytes, seconds)"""
        for attempt in [1, 2]:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
            begun = time.monotonic()
            try:
                self.connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = self.connection.getresponse()
                return response.status, response.read(), time.monotonic() - begun
            except (ConnectionError, http.client.HTTPException):
                self.connection.close()
                self.connection = None
                self.server.check_alive()
        raise AssertionError(f"no answer to {body[:200]}")


class Hostile(unittest.TestCase):
    maxDiff = None

    def check_well(self, server, before):
        server.wait_idle()
        self.assertTrue(server.text())
        self.assertNotIn("panicked", server.log())
        self.assertLess(server.rss_kb() - before, 300 << 10)

    def test_hostile_values_of_every_parameter(self):
        wrong, count = [], 0
        with Server("--disable-log-requests") as server:
            before, asker = server.rss_kb(), Asker(server)
            for number, (path, parameter, status, values) in rows("parameters.txt", 4):
                for value in values.split(" ; "):
                    count += 1
                    base = {**BASES[path], parameter: "HERE"}
                    if parameter == "messages" and path == "/tokenize":
                        del base["prompt"]
                    body = json.dumps(base).replace('"HERE"', value).encode()
                    got, answer, seconds = asker.ask(path, body)
                    fine = got < 500 if status == "~" else got == int(status.rstrip("?"))
                    error = json.loads(answer).get("error") if got != 200 else None
                    named = status != "400" or not error or parameter in f"{error.get('param')} {error.get('message')}"
                    if not fine or not named or seconds > SECONDS_MAX:
                        wrong.append(f"line {number}: {path} {parameter}={value[:80]}: {got} in {seconds:.2f} s {answer[:300]!r}")
            self.assertFalse(wrong, f"{len(wrong)} of {count} cases:\n" + "\n".join(wrong))
            self.assertGreaterEqual(count, 700)
            self.check_well(server, before)

    def test_hostile_heads_and_encodings(self):
        wrong, count = [], 0
        with Server("--disable-log-requests") as server:
            before = server.rss_kb()
            for number, (method, path, headers, body, statuses) in rows("wire.txt", 5):
                count += 1
                lines = [line for line in headers.split(" && ") if line]
                body = unescaped(body)
                if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines) and method == "POST":
                    lines.append(f"Content-Length: {len(body)}")
                if not any(line.lower().startswith("host:") for line in lines):
                    lines.append("Host: localhost")
                if not any(line.lower().startswith("connection:") for line in lines):
                    lines.append("Connection: close")
                head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
                stream = server.send_raw(unescaped(head))
                stream.settimeout(15)
                begun = time.monotonic()
                stream.sendall(body)
                # Where the head lies about the body: nothing more will come. (Otherwise it would mean that the client left.)
                if "Content-Length" in headers or "Transfer-Encoding" in headers:
                    with contextlib.suppress(OSError):
                        stream.shutdown(1)
                answer = read_all(stream)
                seconds = time.monotonic() - begun
                got = answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"
                if got not in statuses.split() or seconds > SECONDS_MAX:
                    wrong.append(f"line {number}: {method} {path} {headers}: {got} in {seconds:.2f} s {answer[-200:]!r}")
            self.assertFalse(wrong, f"{len(wrong)} of {count} cases:\n" + "\n".join(wrong))
            self.assertGreaterEqual(count, 100)
            self.check_well(server, before)

    def test_enormous_and_deep_bodies(self):
        nested = lambda depth: "[" * depth + "]" * depth
        deep_object = '{"a":' * 120 + "1" + "}" * 120
        schema = {"type": "object", "properties": {f"p{n}": {"enum": [f"v{n}-{m}" for m in range(200)]} for n in range(200)}}
        chain = {"$defs": {f"d{n}": {"type": "array", "items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(2000)}, "$ref": "#/$defs/d0"}
        completions = {
            "deep list": f'{{"prompt":{nested(200_000)}}}',
            "deep object": '{"a":' * 200_000,
            "deep metadata": f'{{"prompt":"a","metadata":{deep_object}}}',
            "deep schema": f'{{"prompt":"a","guided_json":{deep_object}}}',
            "wide schema": json.dumps({"prompt": "a", "max_tokens": 2, "guided_json": schema}),
            "chain of references": json.dumps({"prompt": "a", "max_tokens": 2, "guided_json": chain}),
            "large enum": json.dumps({"prompt": "a", "max_tokens": 2, "guided_choice": [f"choice {n}" for n in range(50_000)]}),
            "long regex": json.dumps({"prompt": "a", "max_tokens": 2, "guided_regex": "(a|b)" * 50_000}),
            "nested regex": json.dumps({"prompt": "a", "max_tokens": 2, "guided_regex": "(" * 50_000 + "a" + ")*" * 50_000}),
            "regex of counts": json.dumps({"prompt": "a", "max_tokens": 2, "guided_regex": "(.{0,500}x){0,500}"}),
            "long grammar": json.dumps({"prompt": "a", "max_tokens": 2, "guided_grammar": "start: a0\n" + "".join(f"a{n}: a{n + 1} | \"x\"\n" for n in range(20_000)) + "a20000: \"y\"\n"}),
            "brackets in a grammar": json.dumps({"prompt": "a", "max_tokens": 2, "guided_grammar": "start: " + "(" * 30_000}),
            "long prompt": json.dumps({"prompt": "x" * 7_000_000}),
            "long prompt of marks": json.dumps({"prompt": "e" + "\u0301" * 1_000_000}),
            "long prompt of specials": json.dumps({"prompt": "<eos>" * 1_000_000}),
            "prompts without end": json.dumps({"prompt": ["a"] * 500_000}),
            "tokens without end": json.dumps({"prompt": [5] * 1_000_000}),
            "long parameter name": json.dumps({"prompt": "a", "x" * 1_000_000: 1}),
            "many parameters": json.dumps({"prompt": "a", **{f"x{n}": 1 for n in range(100_000)}}),
            "long model": json.dumps({"prompt": "a", "model": "x" * 1_000_000}),
            "long number": '{"prompt":"a","seed":' + "9" * 1_000_000 + "}",
            "long fraction": '{"prompt":"a","temperature":0.' + "9" * 1_000_000 + "}",
            "long exponent": '{"prompt":"a","temperature":1e' + "9" * 100_000 + "}",
            "biases without end": json.dumps({"prompt": "a", "logit_bias": {str(n): 1 for n in range(200_000)}}),
            "stops without end": json.dumps({"prompt": "a", "stop": ["x"] * 200_000}),
            "bad words without end": json.dumps({"prompt": "a", "bad_words": ["x y z"] * 200_000}),
            "bodies over the limit": json.dumps({"prompt": "x" * (9 << 20)}),
        }  # fmt: skip
        chats = {
            "messages without end": json.dumps({"messages": [{"role": "user", "content": "a"}] * 100_000}),
            "tools without end": json.dumps({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(50_000)]}),
            "deep arguments of the template": '{"messages":[{"role":"user","content":"a"}],"max_tokens":2,"chat_template_kwargs":{"a":' + nested(100) + "}}",
            "parts without end": json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 200_000}]}),
        }  # fmt: skip
        with Server("--disable-log-requests") as server:
            before, wrong = server.rss_kb(), []
            cases = [("/v1/completions", *case) for case in completions.items()]
            cases += [("/v1/chat/completions", *case) for case in chats.items()]
            for path, name, body in cases:
                begun = time.monotonic()
                status, _, answer = server.post(path, body.encode(), timeout=60)
                seconds = time.monotonic() - begun
                if status >= 500 or seconds > 2 * SECONDS_MAX or len(answer) > 5000:
                    wrong.append(f"{name}: {status} in {seconds:.2f} s {answer[:200]!r}")
                self.assertEqual(server.get("/health")[0], 200, name)
            self.assertFalse(wrong, "\n".join(wrong))
            self.check_well(server, before)

    def test_mutated_bodies_never_break_the_server(self):
        seconds_max = float(os.environ.get("FIREBRICK_FUZZ_SECONDS", "8"))
        generator = random.Random(int(os.environ.get("FIREBRICK_FUZZ_SEED", "1")))
        seeds = [(path.stem.split("-")[0], path.read_bytes()) for path in sorted(CORPUS.glob("*.json"))]
        paths = {kind: f"/v1/{kind}" for kind in ["completions", "responses", "messages", "embeddings"]}
        paths["chat"] = "/v1/chat/completions"
        statuses, count = {}, 0
        with Server("--disable-log-requests", "--max-model-len", "256") as server:
            known = {path for path in json.loads(server.get("/openapi.json")[2])["paths"]}
            seeds = [(paths.get(kind, f"/{kind}"), body) for kind, body in seeds]
            seeds = [seed for seed in seeds if seed[0] in known] or self.fail("no seed fits")
            before, asker, deadline = server.rss_kb(), Asker(server), time.monotonic() + seconds_max
            while time.monotonic() < deadline:
                path, body = generator.choice(seeds)
                body = mutated(generator, body, generator.choice(seeds)[1])
                status, answer, seconds = asker.ask(path, body)
                statuses[status] = statuses.get(status, 0) + 1
                count += 1
                self.assertLess(status, 500, (path, body, answer))
                self.assertLess(seconds, 2 * SECONDS_MAX, (path, body))
            print(f"{count} mutated bodies: {statuses}")
            self.assertGreater(statuses.get(400, 0), 100)
            self.check_well(server, before)


HOSTILE_PIECES = [
    b"null", b"true", b"-1", b"0", b"1e308", b"-0", b"4294967296", b"18446744073709551616", b'""', b"[]", b"{}", b"[[]]",
    b'"\\u0000"', b'"\\ud83d\\ude00"', b'{"$ref":"#"}', b'"(a+)+$"', b'"<eos>"', b"0.5", b'"auto"', b'"required"',
]  # fmt: skip


def mutated(generator, body, other):
    """A change to the structure where the body is JSON, else or sometimes to its bytes."""
    body = bytearray(body)
    if generator.random() < 0.7:
        parsed = json.loads(bytes(body))
        for _ in range(generator.randrange(1, 4)):
            change_structure(generator, parsed, json.loads(other))
        text = json.dumps(parsed).encode()
        for marker in range(text.count(b'"PIECE"')):
            text = text.replace(b'"PIECE"', generator.choice(HOSTILE_PIECES), 1)
        return text
    for _ in range(generator.randrange(1, 6)):
        at = generator.randrange(len(body) + 1)
        kind = generator.randrange(5)
        if kind == 0:
            body[at : at + 1] = bytes([generator.randrange(256)])
        elif kind == 1:
            del body[at : at + generator.randrange(1, 20)]
        elif kind == 2:
            body[at:at] = generator.choice(HOSTILE_PIECES)
        elif kind == 3:
            start = generator.randrange(len(other))
            body[at:at] = other[start : start + generator.randrange(40)]
        else:
            body[at:at] = body[at : at + generator.randrange(40)]
    return bytes(body)


def change_structure(generator, parsed, other):
    """Walks to a random place and puts something else there."""
    node = parsed
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            return
        key = generator.choice(list(keys))
        if isinstance(node[key], (dict, list)) and node[key] and generator.random() < 0.7:
            node = node[key]
            continue
        kind = generator.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[generator.choice(list(other) if isinstance(other, dict) and other else ["x"])] = "PIECE"
        elif kind == 2 and isinstance(other, dict) and other:
            name = generator.choice(list(other))
            node[key] = other[name]
        elif kind == 3 and isinstance(node[key], str):
            node[key] = node[key] * generator.randrange(1, 60)
        elif kind == 4 and isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
            node[key] = node[key] * generator.choice([-1, 0, 10, 1 << 31, 1 << 63, 0.1])
        else:
            node[key] = "PIECE"
        return


if __name__ == "__main__":
    unittest.main()
