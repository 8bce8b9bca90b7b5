"""Drives a running server with the real OpenAI client and asserts what it must do.

    pip install openai
    python tests/python/openai_client.py http://127.0.0.1:8000/v1 MODEL [API_KEY]

Works with any model; only the shapes and the relations between answers are checked, never the words.
"""

import json
import time
import urllib.request

import openai

from checks import check, run

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Name three colours."},
]


@check
def models_are_listed(client, model):
    cards = client.models.list().data
    assert model in [card.id for card in cards], cards
    card = client.models.retrieve(model)
    assert card.object == "model" and card.max_model_len > 0


@check
def chat_answers(client, model):
    reply = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, temperature=0)
    choice = reply.choices[0]
    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion"
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 8
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert reply.vllm_stats["inference_time_seconds"] > 0 and reply.vllm_stats["tokens_per_second"] > 0


@check
def streams_add_up_to_the_whole_answer(client, model):
    parameters = dict(model=model, messages=MESSAGES, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**parameters).choices[0]
    text, finish, usage, roles = "", None, None, []
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(stream=True, stream_options=options, **parameters):
        assert chunk.object == "chat.completion.chunk"
        if not chunk.choices:
            usage = chunk.usage
            continue
        assert chunk.usage is None
        delta = chunk.choices[0].delta
        roles += [delta.role] if delta.role else []
        text += delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    assert roles == ["assistant"], roles
    assert text == whole.message.content, (text, whole.message.content)
    assert finish == whole.finish_reason
    assert usage.completion_tokens > 0


@check
def completions_answer_and_stream(client, model):
    parameters = dict(model=model, prompt="Once upon a time", max_tokens=12, temperature=0)
    whole = client.completions.create(**parameters)
    assert whole.object == "text_completion" and whole.id.startswith("cmpl-")
    chunks = list(client.completions.create(stream=True, **parameters))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


@check
def completions_default_to_sixteen_tokens(client, model):
    reply = client.completions.create(model=model, prompt="One two three", extra_body={"ignore_eos": True})
    assert reply.usage.completion_tokens == 16


@check
def prompts_may_be_many_and_may_be_tokens(client, model):
    reply = client.completions.create(model=model, prompt=["One", "Two", "Three"], max_tokens=4, n=2)
    assert [choice.index for choice in reply.choices] == list(range(6))
    reply = client.completions.create(model=model, prompt=[[10, 11, 12], [13, 14]], max_tokens=4)
    assert reply.usage.prompt_tokens == 5 and len(reply.choices) == 2
    reply = client.completions.create(model=model, prompt=[10, 11, 12], max_tokens=4)
    assert reply.usage.prompt_tokens == 3 and len(reply.choices) == 1


@check
def choices_differ_when_drawn_and_repeat_with_a_seed(client, model):
    parameters = dict(model=model, messages=MESSAGES, n=3, max_tokens=16, temperature=1.5, seed=11)
    first = client.chat.completions.create(**parameters)
    second = client.chat.completions.create(**parameters)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2] and len(set(texts)) > 1


@check
def streams_of_several_choices_are_told_apart(client, model):
    parameters = dict(model=model, messages=MESSAGES, n=2, max_tokens=12, temperature=1, seed=5)
    whole = client.chat.completions.create(**parameters)
    texts = ["", ""]
    for chunk in client.chat.completions.create(stream=True, **parameters):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


@check
def greedy_answers_repeat(client, model):
    parameters = dict(model=model, messages=MESSAGES, max_tokens=16, temperature=0)
    texts = {client.chat.completions.create(**parameters).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1, texts


@check
def chat_logprobs_cover_every_token(client, model):
    parameters = dict(model=model, messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3)
    reply = client.chat.completions.create(**parameters)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert isinstance(entry.bytes, list) and entry.top_logprobs[0].logprob >= entry.top_logprobs[-1].logprob
    streamed = []
    for chunk in client.chat.completions.create(stream=True, **parameters):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [entry.token for entry in streamed] == [entry.token for entry in content]


@check
def completion_logprobs_are_parallel_lists(client, model):
    reply = client.completions.create(model=model, prompt="Hello", max_tokens=5, temperature=0, logprobs=2)
    logprobs = reply.choices[0].logprobs
    lengths = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)}
    assert lengths == {reply.usage.completion_tokens}


@check
def stop_strings_cut_the_text(client, model):
    parameters = dict(model=model, prompt="Once upon a time", max_tokens=48, temperature=0)
    text = client.completions.create(**parameters).choices[0].text
    stop = text[len(text) // 2 :][:3]
    assert stop, "the model said nothing"
    choice = client.completions.create(stop=[stop], **parameters).choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason == stop
    assert choice.text == text[: text.index(stop)]


@check
def echo_begins_with_the_prompt(client, model):
    reply = client.completions.create(model=model, prompt="Echo this", max_tokens=2, echo=True)
    assert reply.choices[0].text.startswith("Echo this")


@check
def prompts_can_be_scored(client, model):
    parameters = dict(model=model, prompt="The capital of France is Paris", max_tokens=1, temperature=0)
    echoed = client.completions.create(echo=True, logprobs=1, **parameters).choices[0].logprobs
    assert echoed.token_logprobs[0] is None and all(value <= 0 for value in echoed.token_logprobs[1:])
    reply = client.completions.create(extra_body={"prompt_logprobs": 2}, **parameters)
    positions = reply.choices[0].prompt_logprobs
    assert len(positions) == reply.usage.prompt_tokens == len(echoed.tokens) - 1 and positions[0] is None
    for position, logprob in zip(positions[1:], echoed.token_logprobs[1:]):
        actual = next(iter(position.values()))
        assert abs(actual["logprob"] - logprob) < 1e-3 and 2 <= len(position) <= 3
        assert min(entry["rank"] for entry in position.values()) == 1
    chat = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=1, extra_body={"prompt_logprobs": 0})
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens


@check
def beams_are_shown_best_first(client, model):
    parameters = dict(model=model, prompt="The capital of France is", max_tokens=6, temperature=0)
    reply = client.completions.create(n=3, extra_body={"use_beam_search": True}, **parameters)
    texts = [choice.text for choice in reply.choices]
    assert len(set(texts)) == 3 and reply.usage.completion_tokens <= 18
    widest = client.completions.create(extra_body={"use_beam_search": True, "best_of": 3}, **parameters)
    assert [choice.text for choice in widest.choices] == texts[:1]


@check
def embeddings_are_unit_vectors_of_texts(client, model):
    texts = ["A cat sat on the mat.", "A dog sat on the rug.", "A cat sat on the mat."]
    # The client asks for base64 by itself and unpacks it.
    packed = client.embeddings.create(model=model, input=texts)
    floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert [item.index for item in packed.data] == [0, 1, 2] and packed.usage.prompt_tokens > 10
    for a, b in zip(packed.data, floats.data):
        assert max(abs(x - y) for x, y in zip(a.embedding, b.embedding)) < 1e-5
        assert abs(sum(x * x for x in a.embedding) - 1) < 1e-3
    first, second, third = [item.embedding for item in packed.data]
    assert max(abs(x - y) for x, y in zip(first, third)) < 1e-3 and first != second
    short = client.embeddings.create(model=model, input=texts[0], dimensions=8).data[0].embedding
    assert len(short) == 8 and abs(sum(x * x for x in short) - 1) < 1e-3


@check
def extra_parameters_are_taken(client, model):
    extra = {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "min_tokens": 2, "cache_salt": "salt"}
    reply = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=4, top_p=0.9, frequency_penalty=0.1, presence_penalty=0.1,
        logit_bias={"5": -100}, user="somebody", extra_body=extra,
    )
    assert reply.usage.completion_tokens >= 2


WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "tomorrow": {"type": "boolean"}},
        "required": ["city", "tomorrow"],
        "additionalProperties": False,
    },
}


def assert_weather(name, arguments):
    arguments = json.loads(arguments)
    assert name == "weather" and arguments["city"] in ("Rome", "Oslo") and isinstance(arguments["tomorrow"], bool)


@check
def forced_tool_calls_follow_their_schema(client, model):
    tools = [{"type": "function", "function": WEATHER}]
    parameters = dict(model=model, messages=MESSAGES, tools=tools, max_tokens=200, temperature=0)
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, finish in (("required", "tool_calls"), (named, "stop")):
        forced = dict(tool_choice=choice, parallel_tool_calls=False, **parameters)
        whole = client.chat.completions.create(**forced).choices[0]
        assert whole.finish_reason == finish and whole.message.content is None
        [call] = whole.message.tool_calls
        assert_weather(call.function.name, call.function.arguments)
        pieces, ids, names = [], [], []
        for chunk in client.chat.completions.create(stream=True, **forced):
            for delta in chunk.choices[0].delta.tool_calls or []:
                pieces.append(delta.function.arguments or "")
                ids += [delta.id] if delta.id else []
                names += [delta.function.name] if delta.function.name else []
        assert "".join(pieces) == call.function.arguments and names == ["weather"] and len(ids) == 1
        with client.chat.completions.stream(**forced) as stream:
            [final] = stream.get_final_completion().choices[0].message.tool_calls
        assert final.function.arguments == call.function.arguments


@check
def tools_and_a_format_are_offered_together(client, model):
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
              "additionalProperties": False}
    format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    tools = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    for seed in range(4):
        choice = client.chat.completions.create(
            model=model, messages=MESSAGES, tools=tools, response_format=format, parallel_tool_calls=False,
            max_tokens=200, temperature=1, seed=seed,
        ).choices[0]
        if choice.message.tool_calls:
            assert choice.finish_reason == "tool_calls" and not (choice.message.content or "").strip()
            [call] = choice.message.tool_calls
            assert_weather(call.function.name, call.function.arguments)
        else:
            assert choice.finish_reason == "stop"
            assert json.loads(choice.message.content)["colour"] in ("red", "blue")


@check
def results_of_tools_are_taken(client, model):
    tools = [{"type": "function", "function": WEATHER}]
    parameters = dict(model=model, tools=tools, max_tokens=200, temperature=0)
    first = client.chat.completions.create(messages=MESSAGES, tool_choice="required", **parameters)
    call = first.choices[0].message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = MESSAGES + [first.choices[0].message, result]
    second = client.chat.completions.create(messages=turns, tool_choice="auto", **parameters)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


@check
def responses_are_answered_streamed_and_kept(client, model):
    parameters = dict(model=model, input="Name three colours.", max_output_tokens=24, temperature=0)
    whole = client.responses.create(instructions="Be brief.", **parameters)
    assert whole.object == "response" and whole.status in ("completed", "incomplete") and whole.output_text
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    with client.responses.stream(instructions="Be brief.", **parameters) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == f"response.{whole.status}"
    assert text == events[-1].response.output_text == whole.output_text
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    more = client.responses.create(**{**parameters, "input": "And two more?"}, previous_response_id=whole.id)
    assert more.usage.input_tokens > whole.usage.input_tokens - 10
    client.responses.delete(whole.id)
    try:
        client.responses.retrieve(whole.id)
        raise AssertionError("the response is still there")
    except openai.NotFoundError:
        pass


@check
def responses_call_tools(client, model):
    parameters = dict(
        model=model, tools=[{"type": "function", **WEATHER}], tool_choice="required", max_output_tokens=200,
        parallel_tool_calls=False, temperature=0,
    )
    first = client.responses.create(input="The weather in Rome?", **parameters)
    [call] = first.output
    assert call.type == "function_call"
    assert_weather(call.name, call.arguments)
    with client.responses.stream(input="The weather in Rome?", **parameters) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = client.responses.create(input=[result], previous_response_id=first.id, **parameters)
    assert second.output[0].type == "function_call"


@check
def background_responses_can_be_polled(client, model):
    response = client.responses.create(model=model, input="Count.", max_output_tokens=8, background=True)
    while response.status in ("queued", "in_progress"):
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    assert response.status in ("completed", "incomplete") and response.usage.output_tokens > 0


@check
def errors_are_the_clients_own_exceptions(client, model):
    def raised(kind, **parameters):
        try:
            client.chat.completions.create(**{"model": model, "messages": MESSAGES, "max_tokens": 2, **parameters})
        except kind as error:
            return error
        raise AssertionError(f"{kind.__name__} was not raised by {parameters}")

    assert "does not exist" in str(raised(openai.NotFoundError, model="no-such-model"))
    assert raised(openai.BadRequestError, temperature=-1).param == "temperature"
    assert raised(openai.BadRequestError, n=100_000).param == "n"
    assert raised(openai.BadRequestError, messages=[]).param == "messages"
    assert raised(openai.BadRequestError, extra_body={"no_such_parameter": 1}).param == "no_such_parameter"
    assert "maximum context length" in str(raised(openai.BadRequestError, max_tokens=10**9))
    tool = {"type": "function", "function": {"name": "f", "parameters": 5}}
    assert raised(openai.BadRequestError, tools=[tool]).param == "tools[0].function.parameters"
    assert raised(openai.BadRequestError, response_format={"type": "xml"}).param == "response_format"


@check
def a_client_may_leave_a_stream(client, model):
    for _ in range(5):
        stream = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=200, stream=True)
        next(iter(stream))
        stream.close()
    client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=2)


@check
def probes_and_metrics_answer(client, model):
    root = str(client.base_url).removesuffix("/").removesuffix("/v1")

    def get(path):
        request = urllib.request.Request(root + path, headers={"Authorization": f"Bearer {client.api_key}"})
        with urllib.request.urlopen(request) as response:
            return response.read().decode()

    health = json.loads(get("/health"))
    assert health["status"] == "healthy" and health["model_loaded"] is True
    assert json.loads(get("/ready")) == {"ready": True}
    assert json.loads(get("/metrics.json"))["model"]
    metrics = get("/metrics")
    for name in ("vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket", "vllm_requests_total"):
        assert name in metrics, name
    assert json.loads(get("/version"))["version"]


if __name__ == "__main__":
    run(__doc__, lambda url, key: openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120))
