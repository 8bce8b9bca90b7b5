"""Many streams at once: every one finishes, with the same text as alone.

    FIREBRICK=path/to/firebrick python3 bench/load/streams.py [number of streams, 1000]
"""

import asyncio
import sys
import time

import clients

PROMPTS = 50
TOKENS = 64


def body(number):
    text = f"Prompt {number % PROMPTS}"
    # Half of them draw, with a seed of their own.
    sampling = {"temperature": 0.9, "seed": number % PROMPTS} if number % 2 else {"temperature": 0}
    return clients.completion(prompt=text, max_tokens=TOKENS, **sampling)


async def measure(server, number):
    alone = [server.complete(**body(at))["choices"][0]["text"] for at in range(PROMPTS)]
    begun = time.perf_counter()
    answers = await asyncio.gather(
        *(clients.whole_answer(server, {**body(at), "stream": True}) for at in range(number))
    )
    seconds = time.perf_counter() - begun
    texts = [clients.streamed_text(answer) for answer in answers]
    different = sum(text != alone[at % PROMPTS] for at, text in enumerate(texts))
    server.wait_idle()
    return seconds, different


def main(number=1000):
    with clients.start("--max-connections", "20000") as server:
        seconds, different = asyncio.run(measure(server, number))
        rate = number * TOKENS / seconds
        rows = [
            ("streams open at once", number),
            ("finished with [DONE]", number),
            ("text different from the same request alone", different),
            ("tokens a stream", TOKENS),
            ("seconds", f"{seconds:.2f}"),
            ("tokens a second", f"{rate:.0f}"),
            ("held after", clients.Holdings(server)),
        ]
        clients.report(f"{number} streams at once", rows)
        assert different == 0


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
