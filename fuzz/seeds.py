"""Writes the seeds of a fuzz target into a folder, from what the tests have: python3 seeds.py TARGET FOLDER"""

import json
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CORPUS = REPOSITORY / "tests" / "corpus"
CHECKPOINT = REPOSITORY / "crates" / "checkpoint" / "fixtures"
V1 = ["completions", "responses", "messages", "embeddings", "score", "rerank"]


def paragraphs(name):
    return [part for part in (CORPUS / name).read_text().split("\n\n") if part]


def lines(name):
    return [line for line in (CORPUS / name).read_text().splitlines() if line]


def bodies():
    for path in sorted((CORPUS / "bodies").glob("*.json")):
        kind = path.stem.split("-")[0]
        route = "/v1/chat/completions" if kind == "chat" else f"/v1/{kind}" if kind in V1 else f"/{kind}"
        yield route.encode() + b"\n" + path.read_bytes()


def templates():
    known = json.loads((REPOSITORY / "crates" / "text" / "fixtures" / "chat_templates.json").read_text())
    return (entry["template"].encode() for entry in known.values() if entry.get("template"))


def grammars():
    yield from (b"j" + line.encode() for line in lines("schemas.jsonl"))
    yield from (b"r" + line.encode() for line in lines("expressions.txt"))
    yield from (b"g" + part.encode() for part in paragraphs("grammars.txt"))
    yield b"cyes\nno\nperhaps"


def checkpoints():
    yield b"s" + (CHECKPOINT / "every_type.safetensors").read_bytes()[:16000]
    for path in sorted((REPOSITORY / "tests" / "fixtures" / "models").glob("*/config.json")):
        yield b"c" + path.read_bytes()


SEEDS = {
    "request_body": bodies,
    "event_stream": lambda: [b"\0Hello world", "\1é\u20ac\U0001f600".encode(), b"\4<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"],
    "gguf": lambda: [(CHECKPOINT / "every_type.gguf").read_bytes()],
    "safetensors": checkpoints,
    "tokenizer": lambda: [(CORPUS / "tokenizer.json").read_bytes()],
    "chat_template": templates,
    "grammar": grammars,
}

if __name__ == "__main__":
    target, folder = sys.argv[1:]
    for number, seed in enumerate(SEEDS[target]()):
        (pathlib.Path(folder) / f"{number:03}").write_bytes(seed)
