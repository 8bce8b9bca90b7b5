"""Connections that are opened and dropped at random points: no block, task, file or memory is left behind.

    FIREBRICK=path/to/firebrick python3 bench/load/churn.py [connections, 100000]
"""

import asyncio
import random
import sys
import time

import clients

AT_ONCE = 200


async def visit(server, generator, request):
    """Sends a part of a request or all of it, perhaps reads some of the answer, and leaves in one of two ways."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    cut = generator.choice([0, generator.randrange(len(request)), len(request), len(request), len(request)])
    try:
        writer.write(request[:cut])
        if cut == len(request) and generator.random() < 0.7:
            await asyncio.wait_for(reader.read(generator.choice([1, 200, 5000])), 20)
        if generator.random() < 0.3:
            await asyncio.sleep(generator.random() * 0.01)
    except (ConnectionError, asyncio.TimeoutError):
        pass
    clients.reset(writer) if generator.random() < 0.5 else writer.close()


async def churn(server, number, seed):
    generator = random.Random(seed)
    request = server.raw_request(clients.completion(stream=True, max_tokens=200, n=2))
    left = number

    async def visitor():
        nonlocal left
        while left > 0:
            left -= 1
            await visit(server, generator, request)

    await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))


def settle(server):
    server.wait_idle(30)
    clients_gone = lambda: server.metric("vllm_active_requests") == 0
    deadline = time.monotonic() + 15
    while not clients_gone() and time.monotonic() < deadline:
        time.sleep(0.1)
    # Idle helper threads end after 10 s.
    time.sleep(11)
    return clients.Holdings(server)


def main(number=100_000):
    with clients.start() as server:
        text = server.text(max_tokens=64)
        # The first visits fill caches and pools that stay.
        asyncio.run(churn(server, max(1000, number // 20), seed=1))
        before = settle(server)
        begun = time.perf_counter()
        asyncio.run(churn(server, number, seed=2))
        seconds = time.perf_counter() - begun
        after = settle(server)
        rows = [
            ("connections opened and dropped", number),
            ("at once", AT_ONCE),
            ("seconds", f"{seconds:.1f}"),
            ("held before", before),
            ("held after", after),
            ("blocks in use after", int(server.metric("vllm:kv_cache_usage_perc"))),
        ]
        clients.report(f"{number} connections dropped at random points", rows)
        assert server.text(max_tokens=64) == text
        assert after.files <= before.files and after.threads <= before.threads + 1, "files or threads are left behind"
        assert after.tasks <= before.tasks + 1, "tasks are left behind"
        assert after.rss_mb - before.rss_mb < 20 + number / 5000, "memory grows with the connections"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
