"""Many clients in one process, and what a report says about the machine and the server."""

import asyncio
import contextlib
import json
import os
import pathlib
import platform
import re
import resource
import socket
import statistics
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "real_server"))

from server import Server, completion, events, streamed_text  # noqa: E402, F401


def start(*flags):
    """The server under load; quiet, so that the log is not what is measured."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return Server("--disable-log-requests", *flags)


async def open_request(server, body, receive_buffer=None):
    """(reader, writer) of a connection on which the request has been sent."""
    client = socket.socket()
    client.setblocking(False)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=client, limit=1 << 16)
    writer.write(server.raw_request(body))
    await writer.drain()
    return reader, writer


async def whole_answer(server, body):
    """Everything that came, as bytes."""
    reader, writer = await open_request(server, body)
    try:
        return await reader.read(-1)
    finally:
        writer.close()


async def token_times(server, body):
    """Seconds between one piece of a streamed answer and the next."""
    reader, writer = await open_request(server, body)
    times, done = [], False
    while line := await reader.readline():
        if line.startswith(b"data: "):
            times.append(time.perf_counter())
            done = done or line.startswith(b"data: [DONE]")
    writer.close()
    assert done, "a stream ended without [DONE]"
    return [after - before for before, after in zip(times, times[1:])]


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def reset(writer):
    """Ends a connection with a reset instead of an orderly end."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Holdings:
    """What the server holds: memory, files, threads, tasks."""

    def __init__(self, server):
        self.rss_mb = server.rss_kb() / 1024
        self.files, self.threads = server.num_files(), server.num_threads()
        tasks = [value for name, value in server.metrics().items() if name.startswith("firebrick_tasks")]
        self.tasks = int(tasks[0]) if tasks else 0

    def __str__(self):
        return f"{self.rss_mb:.1f} MB, {self.files} files, {self.threads} threads, {self.tasks} tasks"


def profile():
    """What is known of the binary: where cargo put it."""
    binary = os.environ.get("FIREBRICK", "")
    kinds = {"release": "release build", "debug": "development build"}
    known = [kinds[part] for part in pathlib.Path(binary).parts if part in kinds]
    return known[-1] if known else f"{pathlib.Path(binary).name}, of a profile that its path does not tell"


def report(title, rows):
    """Prints a Markdown section with the conditions under it."""
    load = os.getloadavg()
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    print(f"## {title}\n")
    print("| | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    # The clients are part of the load; what was there before them shows in the older average.
    print(
        f"\n{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({model[1] if model else platform.machine()}) for server and"
        f" clients, load average {load[0]:.1f} over one minute and {load[2]:.1f} over fifteen; {profile()}, tiny model on the CPU.\n",
        flush=True,
    )
