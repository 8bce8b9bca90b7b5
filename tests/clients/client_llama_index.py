"""llama-index's OpenAILike: complete, chat and their streams."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, model, key = sys.argv[1:]
common = {"model": model, "api_base": url, "api_key": key, "max_tokens": 12, "temperature": 0, "context_window": 4096}

chat = OpenAILike(is_chat_model=True, **common)
messages = [ChatMessage(role="user", content="Hello")]
whole = chat.chat(messages)
assert whole.message.content
assert "".join(chunk.delta for chunk in chat.stream_chat(messages)) == whole.message.content

plain = OpenAILike(is_chat_model=False, **common)
whole = plain.complete("Once")
assert whole.text
assert "".join(chunk.delta for chunk in plain.stream_complete("Once")) == whole.text
