"""A steady mixture of requests for a long time: memory, files and blocks stay where they were.

    FIREBRICK=path/to/firebrick python3 bench/load/soak.py [seconds, 3600] [requests a second, 40]

The first fifth is warm-up. Growth is the slope of a straight line through the memory readings after it.
"""

import asyncio
import random
import sys
import time

import clients

PATHS = ["/v1/completions", "/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/models", "/metrics"]


async def one(server, generator, counts):
    path = generator.choice(PATHS)
    text = f"Prompt {generator.randrange(200)} " * generator.randrange(1, 20)
    sampling = {"temperature": generator.choice([0, 0.8]), "max_tokens": generator.randrange(1, 120)}
    if path in ("/v1/models", "/metrics"):
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    elif path == "/tokenize":
        request = server.raw_request({"prompt": text}, path)
    elif path == "/v1/completions":
        fields = {"n": generator.choice([1, 1, 2]), "stream": generator.random() < 0.5, **sampling}
        request = server.raw_request(clients.completion(prompt=text, **fields), path)
    else:
        message = {"role": "user", "content": text}
        request = server.raw_request({"messages": [message], "stream": generator.random() < 0.5, **sampling}, path)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    if generator.random() < 0.1:
        await asyncio.sleep(generator.random() * 0.05)
        writer.close()
        counts["left"] += 1
        return
    answer = await reader.read(-1)
    writer.close()
    status = answer[9:12].decode(errors="replace")
    counts[status] = counts.get(status, 0) + 1


async def soak(server, seconds, rate):
    generator, counts, readings, running = random.Random(3), {"left": 0}, [], set()
    begun = time.monotonic()
    next_reading = 0
    while (now := time.monotonic() - begun) < seconds:
        if now >= next_reading:
            readings.append((now, server.rss_kb() / 1024))
            next_reading += max(1, seconds / 200)
        if len(running) < 500:
            task = asyncio.create_task(one(server, generator, counts))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(generator.expovariate(rate))
    await asyncio.gather(*running)
    return readings, counts


def slope_per_hour(readings):
    times, sizes = zip(*readings)
    mean_time, mean_size = sum(times) / len(times), sum(sizes) / len(sizes)
    above = sum((time - mean_time) * (size - mean_size) for time, size in readings)
    return 3600 * above / sum((time - mean_time) ** 2 for time in times)


def main(seconds=3600, rate=40):
    # A cache that is full before the warm-up ends, so that filling it does not look like a leak.
    with clients.start("--num-gpu-blocks-override", "512", "--max-model-len", "4096") as server:
        readings, counts = asyncio.run(soak(server, seconds, rate))
        server.wait_idle(30)
        warm = [reading for reading in readings if reading[0] > seconds / 5]
        growth = slope_per_hour(warm)
        rows = [
            ("seconds", seconds),
            ("requests a second", rate),
            ("answers by status", ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))),
            ("memory at the end of the warm-up, at most, at the end",
             f"{warm[0][1]:.1f} MB, {max(size for _, size in warm):.1f} MB, {warm[-1][1]:.1f} MB"),
            # Minutes say nothing about an hour.
            ("growth after the warm-up", f"{growth:+.2f} MB an hour" if seconds >= 600 else "too short to say"),
            ("held after", clients.Holdings(server)),
        ]  # fmt: skip
        clients.report(f"Soak of {seconds} s", rows)
        assert set(counts) <= {"200", "left"}, counts
        assert warm[-1][1] - warm[0][1] < 10, "memory grows"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
