"""Drives a running server with the real Anthropic client and asserts what it must do.

    pip install anthropic
    python tests/python/anthropic_client.py http://127.0.0.1:8000 MODEL [API_KEY]

Works with any model; only the shapes and the relations between answers are checked, never the words.
"""

import anthropic

from checks import check, run

# The client has no parameter for it any more; the server takes it as ever.
GREEDY = {"temperature": 0}

MESSAGES = [{"role": "user", "content": "Name three colours."}]
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "tomorrow": {"type": "boolean"}},
        "required": ["city", "tomorrow"],
        "additionalProperties": False,
    },
}


@check
def a_message_is_answered(client, model):
    reply = client.messages.create(model=model, max_tokens=8, messages=MESSAGES, system="Be brief.", extra_body=GREEDY)
    assert reply.type == "message" and reply.role == "assistant" and reply.id.startswith("msg_")
    assert reply.stop_reason in ("end_turn", "max_tokens")
    assert reply.usage.input_tokens > 0 and 0 < reply.usage.output_tokens <= 8
    assert [block.type for block in reply.content] == ["text"]


@check
def a_stream_adds_up_to_the_whole_message(client, model):
    parameters = dict(model=model, max_tokens=24, messages=MESSAGES, extra_body=GREEDY)
    whole = client.messages.create(**parameters)
    with client.messages.stream(**parameters) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


@check
def forced_tools_follow_their_schema(client, model):
    parameters = dict(model=model, max_tokens=200, messages=MESSAGES, tools=[WEATHER], extra_body=GREEDY)
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}):
        whole = client.messages.create(tool_choice=choice, **parameters)
        assert whole.stop_reason == "tool_use", whole
        with client.messages.stream(tool_choice=choice, **parameters) as stream:
            final = stream.get_final_message()
        for reply in (whole, final):
            [block] = reply.content
            assert block.type == "tool_use" and block.name == "weather" and block.id
            assert block.input["city"] in ("Rome", "Oslo") and isinstance(block.input["tomorrow"], bool)
        assert whole.content[0].input == final.content[0].input


@check
def results_of_tools_are_taken(client, model):
    parameters = dict(model=model, max_tokens=100, tools=[WEATHER], extra_body=GREEDY)
    first = client.messages.create(messages=MESSAGES, tool_choice={"type": "tool", "name": "weather"}, **parameters)
    result = {"type": "tool_result", "tool_use_id": first.content[0].id, "content": "sunny"}
    turns = MESSAGES + [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(messages=turns, **parameters)
    assert second.usage.input_tokens > first.usage.input_tokens


@check
def tokens_are_counted_as_they_are_used(client, model):
    counted = client.messages.count_tokens(model=model, messages=MESSAGES, system="Be brief.")
    used = client.messages.create(model=model, max_tokens=1, messages=MESSAGES, system="Be brief.").usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


@check
def stop_sequences_end_the_text(client, model):
    parameters = dict(model=model, max_tokens=48, messages=MESSAGES, extra_body=GREEDY)
    text = client.messages.create(**parameters).content[0].text
    stop = text[len(text) // 2 :][:3]
    if not stop.strip():
        return  # a stop sequence of white space tells nothing
    reply = client.messages.create(stop_sequences=[stop], **parameters)
    assert reply.stop_reason == "stop_sequence" and reply.stop_sequence == stop


@check
def a_last_turn_of_the_assistant_is_continued(client, model):
    turns = MESSAGES + [{"role": "assistant", "content": "Red, green and"}]
    reply = client.messages.create(model=model, max_tokens=8, messages=turns, extra_body=GREEDY)
    assert reply.content[0].type == "text"


@check
def errors_are_the_clients_own_exceptions(client, model):
    def raised(kind, **parameters):
        try:
            client.messages.create(**{"model": model, "max_tokens": 4, "messages": MESSAGES, **parameters})
        except kind as error:
            return error
        raise AssertionError(f"{kind.__name__} was not raised by {parameters}")

    assert raised(anthropic.NotFoundError, model="no-such-model").body["error"]["type"] == "not_found_error"
    error = raised(anthropic.BadRequestError, extra_body={"temperature": -1})
    assert error.body["error"]["type"] == "invalid_request_error" and "temperature" in str(error)
    assert "tools[0].type" in str(raised(anthropic.BadRequestError, tools=[{"type": "bash_20250124", "name": "bash"}]))


if __name__ == "__main__":
    run(__doc__, lambda url, key: anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=120))
