"""Connections that never send a whole request: how much memory they hold, and what they do to others.

    FIREBRICK=path/to/firebrick python3 bench/load/half_open.py [connections, 10000]
"""

import asyncio
import sys
import time

import clients

HALF_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Padding: " + b"x" * 4000


async def hold(server, number):
    """Opens the connections, a third of them silent, the others with half a head."""
    held = []
    for at in range(0, number, 500):
        opened = [asyncio.open_connection("127.0.0.1", server.port) for _ in range(min(500, number - at))]
        held += await asyncio.gather(*opened)
        for index, (_, writer) in enumerate(held[at:]):
            if index % 3:
                writer.write(HALF_HEAD)
    await asyncio.sleep(0.2)
    return held


async def measure(server, number):
    body = clients.completion(stream=True, max_tokens=1000)
    quiet = await clients.token_times(server, body)
    before = clients.Holdings(server)
    begun = time.perf_counter()
    held = await hold(server, number)
    opening = time.perf_counter() - begun
    peak = clients.Holdings(server)
    busy = await clients.token_times(server, body)
    deadline = time.monotonic() + 20
    while server.num_files() > before.files + 5 and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    given_up = time.perf_counter() - begun
    after = clients.Holdings(server)
    for _, writer in held:
        clients.reset(writer)
    return before, peak, after, opening, given_up, quiet, busy


def main(number=10_000):
    # Room for the probing client beside those that hang.
    with clients.start("--max-connections", str(number + 100)) as server:
        before, peak, after, opening, given_up, quiet, busy = asyncio.run(measure(server, number))
        held_mb = peak.rss_mb - before.rss_mb
        p99 = [1000 * clients.percentile(gaps, 0.99) for gaps in (quiet, busy)]
        rows = [
            ("half-open connections", number),
            ("opened within", f"{opening:.1f} s"),
            ("held before", before),
            ("held with all of them open", peak),
            ("memory for them", f"{held_mb:.0f} MB, {held_mb * 1024 / number:.1f} KB each (limit: 700 MB)"),
            ("closed by the server within", f"{given_up:.1f} s"),
            ("held after", after),
            ("another client's p99 inter-token time", f"{p99[0]:.2f} ms without, {p99[1]:.2f} ms with them"),
        ]
        clients.report(f"{number} half-open connections", rows)
        assert held_mb <= 700 and after.files <= before.files + 5


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
