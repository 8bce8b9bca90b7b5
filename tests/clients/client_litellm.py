"""litellm: chat, completion, streaming, errors, through its OpenAI-compatible provider."""

import sys

import litellm

url, model, key = sys.argv[1:]
litellm.telemetry = False
common = {"model": f"openai/{model}", "api_base": url, "api_key": key, "max_tokens": 12, "temperature": 0}
messages = [{"role": "user", "content": "Hello"}]

whole = litellm.completion(messages=messages, **common)
assert whole.choices[0].finish_reason in ("stop", "length")
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

chunks = list(litellm.completion(messages=messages, stream=True, stream_options={"include_usage": True}, **common))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == whole.choices[0].message.content, (text, whole)

text = litellm.text_completion(prompt="Once", **common)
assert text.choices[0].text is not None

try:
    litellm.completion(messages=messages, **{**common, "temperature": 99, "top_p": 7})
    raise SystemExit("a temperature of 99 and a top_p of 7 were taken")
except litellm.BadRequestError as error:
    assert "top_p" in str(error), error
try:
    litellm.completion(messages=messages, **{**common, "api_key": "wrong"})
    raise SystemExit("a wrong key was taken")
except litellm.AuthenticationError:
    pass
