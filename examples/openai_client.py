# pip install openai && python examples/openai_client.py --url http://127.0.0.1:8000
"""The official OpenAI client against Firebrick: one answer, a streamed one, a conversation, or many at once."""
import argparse
import time
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI


def answer(client, model, messages):
    response = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
    return response.choices[0].message.content, response.usage.completion_tokens


def stream(client, model, messages):
    text = ""
    options = {"stream": True, "temperature": 0.2, "max_tokens": 128}
    for chunk in client.chat.completions.create(model=model, messages=messages, **options):
        if chunk.choices and chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
            print(chunk.choices[0].delta.content, end="", flush=True)
    print()
    return text


def batch(client, model, count):
    ask = lambda i: answer(client, model, [{"role": "user", "content": f"Name {i + 2} animals."}])
    start = time.time()
    with ThreadPoolExecutor(count) as pool:
        tokens = sum(used for _, used in pool.map(ask, range(count)))
    seconds = time.time() - start
    print(f"{count} requests, {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000")
parser.add_argument("--api-key", default="none")
parser.add_argument("--interactive", action="store_true", help="a conversation; an empty line ends it")
parser.add_argument("--test", choices=["single", "batch"], default="single")
parser.add_argument("--num-requests", type=int, default=5)
args = parser.parse_args()
client = OpenAI(base_url=f"{args.url}/v1", api_key=args.api_key)
model = client.models.list().data[0].id
if args.interactive:
    messages = []
    while question := input("> "):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": stream(client, model, messages)})
elif args.test == "batch":
    batch(client, model, args.num_requests)
else:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    print(answer(client, model, question)[0])
    stream(client, model, question)
