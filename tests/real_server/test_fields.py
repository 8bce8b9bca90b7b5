"""Nothing that is accepted is silently ignored: every field of every request, in a table that the server is held to."""

import json
import pathlib
import re
import tempfile
import unittest

import fields
import tiny_model
from server import REPOSITORY, Server

# A template in which everything that a request can bring leaves a trace.
TEMPLATE = (
    "{% for tool in tools or [] %}[tool {{ tool | tojson }}]{% endfor %}"
    "{% for document in documents or [] %}[document {{ document | tojson }}]{% endfor %}"
    "{{ mood }}{{ reasoning_effort }}{{ verbosity }}{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
    "{% for message in messages %}[{{ message.role }} {{ message.name }} {{ message.tool_call_id }}] "
    "{{ message.reasoning_content or '' }}{{ message.content or '' }}{{ (message.tool_calls or []) | tojson }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHAT = ("/v1/chat/completions", {"messages": [fields.USER], "temperature": 0, "seed": 3, "max_tokens": 12})
RESPONSES = ("/v1/responses", {"input": "Hello", "temperature": 0, "seed": 3, "max_output_tokens": 12})
MESSAGES = ("/v1/messages", {"messages": [fields.USER], "temperature": 0, "max_tokens": 12})
ENDPOINTS = {
    **dict.fromkeys(("ChatRequest", "ChatMessage", "ContentPart", "PastCall", "PastFunction", "Tool", "ToolFunction"), CHAT),
    **dict.fromkeys(("StreamOptionFields", "ResponseFormat", "JsonSchemaFormat", "StructureFields", "StructuredOutputFields"), CHAT),
    "CompletionRequest": ("/v1/completions", {"prompt": "Once", "temperature": 0, "seed": 3, "max_tokens": 12}),
    **dict.fromkeys(("ResponsesRequest", "InputItem", "ResponseStreamOptions", "FlatTool", "ReasoningFields"), RESPONSES),
    **dict.fromkeys(("TextFields", "TextFormat"), RESPONSES),
    **dict.fromkeys(("MessagesRequest", "Turn", "Block", "AnthropicTool", "AnthropicToolChoice", "Thinking"), MESSAGES),
    **dict.fromkeys(("OutputConfig", "OutputFormat", "ContextManagement", "ContextEdit"), MESSAGES),
    "CountTokensRequest": ("/v1/messages/count_tokens", {"messages": [fields.USER]}),
    "TokenizeRequest": ("/tokenize", {"prompt": "Once"}),
    "DetokenizeRequest": ("/detokenize", {"tokens": [fields.A]}),
    "EmbeddingsRequest": ("/v1/embeddings", {"input": "Once"}),
    "ScoreRequest": ("/score", {"text_1": "Once", "text_2": "Twice"}),
    "RerankRequest": ("/rerank", {"query": "Once", "documents": ["Once", "Twice", "more"]}),
    "GenerateRequest": ("/generate", {"prompt": "Once", "temperature": 0, "max_tokens": 12}),
    "BatchRequest": ("/batch_generate", {"prompts": ["Once"], "temperature": 0, "max_tokens": 12}),
}
# What differs between equal requests.
VOLATILE = ("id", "created", "created_at", "completed_at", "vllm_stats", "item_id", "call_id", "prompt_tokens_details", "input_tokens_details")
IDS = re.compile(r"\b(chatcmpl|cmpl|resp|msg|rs|fc|call|toolu|embd|score|rerank|chatcmpl-tool)[-_][0-9a-zA-Z]+")


def stable(value):
    """An answer without what differs between equal requests."""
    if isinstance(value, dict):
        if "cache_read_input_tokens" in value:
            # Anthropic counts what was cached apart from the rest.
            value = {**value, "input_tokens": value["input_tokens"] + value["cache_read_input_tokens"], "cache_read_input_tokens": 0}
        return {key: stable(item) for key, item in value.items() if key not in VOLATILE}
    return [stable(item) for item in value] if isinstance(value, list) else IDS.sub("", value) if isinstance(value, str) else value


class Fields(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # A tokenizer that puts a special token before texts.
        cls.folder = tempfile.TemporaryDirectory()
        model = tiny_model.write(pathlib.Path(cls.folder.name, "tiny"))
        begin = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        ids = {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}}
        post = {"type": "TemplateProcessing", "single": begin, "pair": begin, "special_tokens": ids}
        (model / "tokenizer.json").write_text(json.dumps({**tiny_model.tokenizer(), "post_processor": post}))
        cls.server = Server("--chat-template", TEMPLATE, "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3", model=model)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()
        cls.folder.cleanup()

    def ask(self, schema, *parts):
        path, body = ENDPOINTS[schema]
        for part in parts:
            body = {**body, **part}
        body = {name: value for name, value in body.items() if value is not None}
        status, headers, answer = self.server.post(path, body)
        if headers["content-type"].startswith("text/event-stream"):
            events = re.findall(rb"^data: (\{.*\})$", answer, re.M)
            return status, [stable(json.loads(event)) for event in events]
        return status, stable(json.loads(answer))

    def check(self, schema, field, proof):
        whole = "value" in vars(proof) and isinstance(proof.value, dict) and schema not in TOP
        part = lambda: proof.value if whole else {field: proof.value}
        if isinstance(proof, (fields.Changes, fields.Informational)):
            before, after = self.ask(schema, proof.base), self.ask(schema, proof.base, part())
            self.assertEqual((before[0], after[0]), (200, 200), (before, after))
            same = before == after
            self.assertEqual(same, isinstance(proof, fields.Informational), (before, after))
        elif isinstance(proof, fields.Differ):
            one, other = (self.ask(schema, proof.base, body) for body in (proof.one, proof.other))
            self.assertEqual((one[0], other[0]), (200, 200), (one, other))
            self.assertNotEqual(one, other)
        elif isinstance(proof, fields.Refused):
            status, answer = self.ask(schema, proof.base, part())
            message = json.dumps(answer)
            self.assertEqual(status, 400, answer)
            self.assertIn(proof.param or field, message)
        else:
            self.assertTrue(is_test(proof.test), f"there is no test {proof.test}")

    def test_every_field_of_every_request_changes_the_answer_is_refused_or_is_known_to_change_nothing(self):
        schemas = json.loads(self.server.get("/openapi.json")[2])["components"]["schemas"]
        accepted = {name: set(schema["properties"]) for name, schema in schemas.items() if "properties" in schema}
        self.assertGreater(len(accepted), 30)
        problems = []
        for schema, names in accepted.items():
            table = fields.FIELDS.get(schema, {})
            problems += [f"{schema}.{name}: accepted, but not in the table" for name in sorted(names - set(table))]
            problems += [f"{schema}.{name}: in the table, but not accepted" for name in sorted(set(table) - names)]
            for name in sorted(names & set(table)):
                try:
                    self.check(schema, name, table[name])
                except AssertionError as error:
                    problems.append(f"{schema}.{name}: {str(error)[:400]}")
        self.assertEqual(problems, [], "\n" + "\n".join(problems))

    def test_a_salt_separates_prefix_caches(self):
        def cached(salt):
            body = {"prompt": "x" * 100, "max_tokens": 1, "cache_salt": salt}
            return json.loads(self.server.post("/v1/completions", body)[2])["usage"]["prompt_tokens_details"]["cached_tokens"]

        self.assertEqual([cached(salt) > 0 for salt in ("one", "one", "two", "two")], [False, True, False, True])


# The requests themselves; the other schemas are parts of them, and their table holds whole requests.
TOP = {name for name in ENDPOINTS if name.endswith("Request")}


def is_test(name):
    """Whether a test in this repository is called so."""
    found = re.compile(rf"\b(fn|def) {name}\(")
    folders = [REPOSITORY / "crates", REPOSITORY / "tests"]
    paths = (path for folder in folders for pattern in ("*.rs", "*.py") for path in pathlib.Path(folder).rglob(pattern))
    return any(found.search(path.read_text()) for path in paths)
