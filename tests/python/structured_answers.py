"""A hundred answers that must follow a JSON schema, from a real model, in batches and in a pool that is too small for them.

    pip install jsonschema openai
    python tests/python/structured_answers.py http://127.0.0.1:8000/v1 MODEL [API_KEY]

Half of them are greedy, half are drawn at temperature 1.5. Start the server with so few blocks that sequences are
preempted (`--num-gpu-blocks-override 40`): the checks want to see that happen.
"""

import asyncio
import json
import re
import urllib.request

import jsonschema
import openai

from checks import check, run

WORD = {"type": "string", "maxLength": 12}
SCHEMAS = {
    "a person": {
        "type": "object",
        "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 130}, "married": {"type": "boolean"}},
        "required": ["name", "age", "married"],
        "additionalProperties": False,
    },
    "a list of two to four colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 4},
    "a booking": {
        "type": "object",
        "properties": {
            "guest": {"$ref": "#/$defs/guest"},
            "nights": {"type": "integer", "minimum": 1, "maximum": 14},
            "room": {"enum": ["single", "double", None]},
        },
        "required": ["guest", "nights", "room"],
        "additionalProperties": False,
        "$defs": {"guest": {"type": "object", "properties": {"name": WORD}, "required": ["name"], "additionalProperties": False}},
    },
    "a shape": {
        "anyOf": [
            {"type": "object", "properties": {"radius": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["radius"], "additionalProperties": False},
            {"type": "object", "properties": {"sides": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 99}, "minItems": 3, "maxItems": 3}}, "required": ["sides"], "additionalProperties": False},
        ],
    },
    "a date and a code": {
        "type": "object",
        "properties": {
            "date": {"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])-[0-2][1-8]$"},
            "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
        },
        "required": ["date", "code"],
        "additionalProperties": False,
    },
}  # fmt: skip
ANSWERS_OF_EACH = 10


async def answers(client, model, temperature):
    """(what was asked, the text, why it ended) of every answer, all asked at once."""
    client = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, timeout=600, max_retries=0)

    async def one(name, number):
        schema = {"name": "answer", "schema": SCHEMAS[name], "strict": True}
        reply = await client.chat.completions.create(
            model=model, temperature=temperature, seed=number, max_tokens=300,
            messages=[{"role": "user", "content": f"Describe {name} of number {number} in JSON."}],
            response_format={"type": "json_schema", "json_schema": schema},
        )  # fmt: skip
        choice = reply.choices[0]
        return name, choice.message.content, choice.finish_reason

    async with client:
        return await asyncio.gather(*(one(name, number) for name in SCHEMAS for number in range(ANSWERS_OF_EACH)))


def follow_their_schemas(client, model, temperature):
    texts = asyncio.run(answers(client, model, temperature))
    assert len(texts) == len(SCHEMAS) * ANSWERS_OF_EACH
    wrong = []
    for name, text, reason in texts:
        try:
            assert reason == "stop", reason
            jsonschema.validate(json.loads(text), SCHEMAS[name])
        except (AssertionError, ValueError, jsonschema.ValidationError) as problem:
            wrong.append(f"{name}: {text!r}: {problem}")
    assert not wrong, f"{len(wrong)} of {len(texts)}: {wrong[:3]}"
    return [text for _, text, _ in texts]


@check
def fifty_greedy_answers_follow_their_schemas(client, model):
    follow_their_schemas(client, model, 0)


@check
def fifty_answers_at_temperature_one_and_a_half_follow_their_schemas(client, model):
    texts = follow_their_schemas(client, model, 1.5)
    assert len(set(texts)) > len(texts) / 2, "the draws differ"


@check
def sequences_were_preempted_on_the_way(client, _):
    metrics = urllib.request.urlopen(str(client.base_url).replace("/v1/", "/metrics")).read().decode()
    preempted = re.search(r"^vllm:num_preemptions_total\{[^}]*\} (\S+)$", metrics, re.MULTILINE)
    assert preempted and float(preempted[1]) > 0, preempted


if __name__ == "__main__":
    run(__doc__, lambda url, key: openai.OpenAI(base_url=url, api_key=key))
