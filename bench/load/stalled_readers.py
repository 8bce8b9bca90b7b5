"""Readers that stop reading: what they do to the inter-token time of those who read.

    FIREBRICK=path/to/firebrick python3 bench/load/stalled_readers.py [stalled readers, 500]

The same small group of clients is timed alone, beside clients that stalled with their answers unread, and alone again:
the machine's own unrest is the difference between the first and the last.
"""

import asyncio
import subprocess
import sys
import time

import clients

MEASURED = 8
TOKENS = 1000


async def timed(server, rounds=3):
    body = clients.completion(stream=True, max_tokens=TOKENS)
    gaps = []
    for _ in range(rounds):
        for one in await asyncio.gather(*(clients.token_times(server, body) for _ in range(MEASURED))):
            gaps += one
    return gaps


async def measure(server, number):
    await timed(server, 1)
    alone = await timed(server)
    stalled = []
    for _ in range(number):
        # A small window and fat events: the answer does not fit into what the sockets hold.
        body = clients.completion(stream=True, max_tokens=400, logprobs=20, n=2)
        stalled.append(await clients.open_request(server, body, receive_buffer=4096))
        stalled[-1][1].transport.pause_reading()
    while not server.is_idle():
        await asyncio.sleep(0.2)
    open_streams = server.metric("vllm_active_requests")
    held = clients.Holdings(server)
    beside = await timed(server)
    for _, writer in stalled:
        clients.reset(writer)
    while server.metric("vllm_active_requests"):
        await asyncio.sleep(0.1)
    again = await timed(server)
    return alone, beside, again, open_streams, held


def main(number=500):
    with clients.start() as server:
        alone, beside, again, open_streams, held = asyncio.run(measure(server, number))
        rows = [("stalled readers", number), ("of these with an answer that is not yet taken", int(open_streams))]
        figures = []
        for name, gaps in [("alone", alone), ("beside the stalled readers", beside), ("alone again", again)]:
            mean, p99 = 1000 * sum(gaps) / len(gaps), 1000 * clients.percentile(gaps, 0.99)
            figures.append(p99)
            rows.append((f"inter-token time {name}: mean, p99", f"{mean:.2f} ms, {p99:.2f} ms"))
        change = 100 * (figures[1] / max(figures[0], figures[2]) - 1)
        rows.append(("p99 beside them against the worse of the two alone", f"{change:+.1f} %"))
        rows.append(("held with the stalled readers", held))
        clients.report(f"{number} stalled readers", rows)
        return change


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
