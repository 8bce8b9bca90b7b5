"""Clients that leave, do not read, send half a request or too much of it, against a real process."""

import random
import socket
import struct
import time
import unittest

from server import Server, completion, read_all, read_some, streamed_text, wait_for

POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
LONG = {"max_tokens": 12_000, "prompt": "A long story"}


def reset(stream):
    """Closes so that the other side gets a reset instead of an orderly end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


class Leaving(unittest.TestCase):
    def test_a_client_that_leaves_frees_its_blocks_at_once(self):
        with Server("--max-num-batched-tokens", "512") as server:
            server.text()
            whole = completion(**LONG)
            cases = [
                ("mid-stream", server.raw_request({**whole, "stream": True}), b"data: "),
                ("several choices", server.raw_request({**whole, "stream": True, "n": 4}), b"data: "),
                ("without a stream", server.raw_request(whole), None),
                ("in prefill", server.raw_request({**whole, "prompt": "long " * 2000, "max_tokens": 99}), None),
            ]
            for name, request, marker in cases:
                for leave in [socket.socket.close, reset]:
                    with self.subTest(name, leave=leave.__name__):
                        stream = server.send_raw(request)
                        if marker:
                            read_some(stream, marker)
                        else:
                            wait_for(lambda: not server.is_idle(), "a running request", 5)
                        left = time.monotonic()
                        leave(stream)
                        server.wait_idle(2)
                        self.assertLess(time.monotonic() - left, 1, "a step and a tenth of a second")
            self.assertEqual(server.metric("vllm:kv_cache_usage_perc"), 0)

    def test_connections_dropped_at_random_points_leak_nothing(self):
        random.seed(5)
        with Server("--disable-log-requests") as server:
            alone = server.text(max_tokens=64)
            files, tasks = server.num_files(), server.metric("firebrick_tasks")
            request = server.raw_request(completion(stream=True, max_tokens=400, n=2))
            for number in range(500):
                stream = server.send_raw(request[: random.randrange(len(request) * 2)])
                if number % 3 == 0:
                    time.sleep(random.random() * 0.004)
                (reset if number % 2 else socket.socket.close)(stream)
            server.wait_idle()
            wait_for(lambda: server.num_files() <= files, "closed sockets", 5)
            wait_for(lambda: server.metric("firebrick_tasks") <= tasks, "ended tasks", 5)
            self.assertLess(server.num_threads(), 40)
            self.assertEqual(server.text(max_tokens=64), alone)


class NotReading(unittest.TestCase):
    def test_readers_that_stall_hold_nobody_up_and_lose_nothing_when_they_go_on(self):
        with Server() as server:
            # Megabytes a stream, more than the sockets between the two take.
            fields = {"max_tokens": 1500, "logprobs": 20, "n": 4}
            alone = server.text(**fields)
            request = server.raw_request(completion(stream=True, **fields))
            stalled = [server.send_raw(request, receive_buffer=4096) for _ in range(3)]
            self.assertEqual(server.text(**fields), alone)
            server.wait_idle(30)
            self.assertEqual(server.metric("vllm_active_requests"), 3, "their answers are computed, but not taken")
            for stream in stalled:
                self.assertEqual(streamed_text(read_all(stream)), alone)
            wait_for(lambda: server.metric("vllm_active_requests") == 0, "all answers taken", 5)


class HalfRequests(unittest.TestCase):
    def test_half_a_request_is_closed_after_its_time(self):
        with Server() as server:
            begun = time.monotonic()
            nothing, half_head = server.send_raw(b""), server.send_raw(POST + b"Content-Length: 99\r\n")
            self.assertNotIn(b"200 OK", read_all(half_head))
            read_all(nothing)
            self.assertLess(time.monotonic() - begun, 15, "headers have 10 s")

    def test_a_slowloris_holds_nothing_up(self):
        with Server() as server:
            # A byte now and then does not extend the time that the headers have.
            slow = [server.send_raw(b"GET /health HTTP/1.1\r\n") for _ in range(200)]
            begun = time.monotonic()
            alive = slow
            while alive and time.monotonic() - begun < 15:
                before = time.monotonic()
                self.assertEqual(server.get("/health")[0], 200)
                self.assertLess(time.monotonic() - before, 1)
                time.sleep(0.5)
                alive = [stream for stream in alive if trickle(stream)]
            self.assertEqual(alive, [])

    def test_half_open_connections_are_given_up(self):
        # Bytes that never come and an end that is never told: a peer that lost its power.
        with Server() as server:
            files = server.num_files()
            half = [server.send_raw(b"") for _ in range(500)]
            self.assertEqual(server.text(max_tokens=8), server.text(max_tokens=8))
            wait_for(lambda: server.num_files() <= files + 2, "closed connections", 15)
            for stream in half:
                stream.close()


def trickle(stream):
    """Sends one more byte; false once the server has closed."""
    stream.setblocking(False)
    try:
        if stream.recv(4096) == b"":
            return False
    except BlockingIOError:
        pass
    except ConnectionError:
        return False
    try:
        stream.send(b"x")
    except ConnectionError:
        return False
    return True


class TooMuch(unittest.TestCase):
    def test_what_is_too_large_is_refused_before_it_is_stored(self):
        with Server("--max-body-size", "1M") as server:
            before = server.rss_kb()
            for claimed, sent in [(1 << 60, 1 << 16), (64 << 20, 8 << 20), (2 << 20, 2 << 20)]:
                head = POST + b"Content-Length: %d\r\n\r\n" % claimed
                self.assertEqual(status_of(server, head, b"x" * sent), 413)
            chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            self.assertEqual(status_of(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 64), 413)
            self.assertLess(server.rss_kb() - before, 20 << 10)
            self.assertEqual(server.get("/health")[0], 200)

    def test_header_floods_are_refused(self):
        with Server() as server:
            cases = [
                b"".join(b"X-%d: a\r\n" % number for number in range(1000)),
                b"X-Long: " + b"a" * 200_000 + b"\r\n",
                b"X-" + b"a" * 100_000 + b": b\r\n",
            ]
            for headers in cases:
                self.assertIn(status_of(server, b"GET /health HTTP/1.1\r\nHost: a\r\n", headers + b"\r\n"), [431, None])
            line = b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
            self.assertIn(status_of(server, line, b""), [414, 431, None])
            self.assertEqual(server.get("/health")[0], 200)


def status_of(server, *parts):
    """The status of the answer; None where the connection was closed without one."""
    stream = server.send_raw(b"")
    try:
        for part in parts:
            stream.sendall(part)
    except ConnectionError:
        pass
    answer = read_all(stream)
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


if __name__ == "__main__":
    unittest.main()
