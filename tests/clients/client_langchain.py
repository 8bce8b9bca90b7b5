"""langchain-openai: ChatOpenAI and OpenAI, whole, streamed, in a batch, with structured output."""

import sys

from langchain_openai import ChatOpenAI, OpenAI

url, model, key = sys.argv[1:]
chat = ChatOpenAI(model=model, base_url=url, api_key=key, max_tokens=12, temperature=0, stream_usage=True)

whole = chat.invoke("Hello")
assert isinstance(whole.content, str) and whole.usage_metadata["output_tokens"] > 0
streamed = list(chat.stream("Hello"))
assert "".join(chunk.content for chunk in streamed) == whole.content
assert any(chunk.usage_metadata for chunk in streamed)
answers = chat.batch(["Hello", "Hello", "Good bye"])
assert answers[0].content == answers[1].content == whole.content

llm = OpenAI(model=model, base_url=url, api_key=key, max_tokens=12, temperature=0)
assert isinstance(llm.invoke("Once"), str)
