"""What is too much, too late or not theirs is refused by the real process, and soon."""

import ctypes
import http.client
import json
import os
import pathlib
import random
import struct
import threading
import time
import unittest
import urllib.parse

import tiny_model
from server import Server, completion, events, read_all, read_some, run_to_end, streamed_text, wait_for

LONG = {"max_tokens": 12_000, "prompt": "A long story"}


class Queue(unittest.TestCase):
    def test_beyond_its_queue_a_server_refuses_at_once_and_finishes_the_rest(self):
        with Server("--max-num-seqs", "2", "--max-num-queued-reqs", "6") as server:
            alone = server.text(max_tokens=200)
            running = [server.open_stream(**LONG) for _ in range(2)]
            begun = [read_some(stream, b"data: ") for stream in running]
            waiting = [server.open_stream(max_tokens=200) for _ in range(6)]
            wait_for(lambda: server.metric("vllm:num_requests_waiting{") == 6, "a full queue", 10)
            for _ in range(20):
                before = time.monotonic()
                status, headers, body = server.post("/v1/completions", completion())
                self.assertEqual((status, "retry-after" in headers), (503, True), body)
                self.assertLess(time.monotonic() - before, 1)
            for stream in running:
                stream.close()
            self.assertEqual([streamed_text(read_all(stream)) for stream in waiting], [alone] * 6)
            self.assertTrue(all(begun))
            server.wait_idle()

    def test_a_request_ends_when_its_time_is_over_also_in_the_queue(self):
        with Server("--max-num-seqs", "1", "--request-timeout", "1", "--max-model-len", "16384") as server:
            begun = time.monotonic()
            # A debug build makes a token in about a millisecond, so that none of these is done in a second.
            streams = [server.open_stream(**LONG, n=1) for _ in range(3)]
            for stream in streams:
                raw = read_all(stream)
                if b"504" in raw.split(b"\r\n", 1)[0]:
                    continue
                parsed, done = events(raw)
                self.assertTrue(done)
                self.assertEqual(parsed[-1]["error"]["code"], 504, parsed[-1])
            self.assertLess(time.monotonic() - begun, 3)
            server.wait_idle()
            self.assertTrue(server.text())


class Opens:
    """Counts how often files in a folder are opened, by anybody, while it lasts."""

    IN_OPEN = 0x20

    def __init__(self, folder):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.watch = self.libc.inotify_init1(os.O_NONBLOCK)
        added = self.libc.inotify_add_watch(self.watch, os.fsencode(str(folder)), self.IN_OPEN)
        assert self.watch >= 0 and added >= 0, os.strerror(ctypes.get_errno())

    def count(self):
        try:
            data = os.read(self.watch, 1 << 20)
        except BlockingIOError:
            return 0
        at = count = 0
        while at < len(data):
            at += struct.calcsize("iIII") + struct.unpack_from("iIII", data, at)[3]
            count += 1
        return count

    def close(self):
        os.close(self.watch)


def mutated_names(generator, target, count):
    """Ways to write a path to a file, as clients that mean harm write them."""
    inside = os.path.relpath(target, pathlib.Path(target).parent / "tiny")
    bases = [str(target), inside, f"tiny/{inside}", f"file://{target}", "../" * 8 + str(target).lstrip("/"), target.name]
    pieces = ["../", "..\\", "./", "//", "%2e%2e/", "%2f", "\u2025/", "..;/", "~", "\0", "%00", "....//", "tiny/", ":", "\u202e", " "]
    for _ in range(count):
        name = generator.choice(bases)
        for _ in range(generator.randrange(3)):
            at = generator.randrange(len(name) + 1)
            name = name[:at] + generator.choice(pieces) + name[at:]
        yield name


class Names(unittest.TestCase):
    def test_names_from_clients_open_no_file(self):
        count, generator = int(os.environ.get("FIREBRICK_NAMES", "3000")), random.Random(1)
        with Server("--disable-log-requests") as server:
            secret = pathlib.Path(server.folder.name) / "secret.txt"
            secret.write_text("ppSECRETpp")
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            opens, statuses = Opens(server.folder.name), {}
            for name in mutated_names(generator, secret, count):
                quoted = urllib.parse.quote(name, safe="/%" if generator.random() < 0.5 else "")
                body = json.dumps(completion(model=name))
                asked = [("POST", "/v1/completions", body), ("GET", f"/v1/models/{quoted}", None), ("GET", f"/v1/responses/{quoted}", None)]
                asked += [("GET", f"/{quoted}", None), ("GET", f"/ui/{quoted}", None)]
                method, path, body = generator.choice(asked)
                connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
                response = connection.getresponse()
                answer = response.read()
                statuses[response.status] = statuses.get(response.status, 0) + 1
                self.assertIn(response.status, [400, 404], (path, answer))
                self.assertNotIn(b"SECRET", answer)
            self.assertEqual(opens.count(), 0, "a name from a client was opened")
            secret.read_text()
            self.assertEqual(opens.count(), 1, "the watch sees what is opened")
            opens.close()
            print(f"{count} names: {statuses}")


class Neighbours(unittest.TestCase):
    def test_hostile_grammars_hold_up_nobody_else(self):
        deep = {"$defs": {f"d{n}": {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/d{n + 1}"}}, {"type": "null"}]} for n in range(1500)}, "$ref": "#/$defs/d0"}
        hostile = [
            {"guided_regex": "(.{0,500}x){0,500}"}, {"guided_regex": "((a|b)*c){0,999}(d|e)*"},
            {"guided_json": deep}, {"guided_choice": [f"choice {n}" for n in range(9000)]},
            {"guided_grammar": "start: a0\n" + "".join(f'a{n}: a{n + 1} | "x" a{n}\n' for n in range(1500)) + 'a1500: "y"\n'},
        ]  # fmt: skip
        with Server("--disable-log-requests") as server:
            def longest_wait():
                stream, longest = server.open_stream(max_tokens=3000), 0.0
                read_some(stream, b"data: ")
                before = time.monotonic()
                while stream.recv(1 << 16):
                    longest, before = max(longest, time.monotonic() - before), time.monotonic()
                return longest

            quiet, done, statuses = longest_wait(), threading.Event(), []

            def attack(number):
                while not done.is_set():
                    # Another text each time, so that no cache helps.
                    body = completion(max_tokens=4, prompt=f"{number}", **hostile[len(statuses) % len(hostile)])
                    statuses.append(server.post("/v1/completions", body)[0])

            attackers = [threading.Thread(target=attack, args=[number]) for number in range(3)]
            for attacker in attackers:
                attacker.start()
            beside = longest_wait()
            done.set()
            for attacker in attackers:
                attacker.join()
            print(f"longest wait for a token: {1000 * quiet:.0f} ms alone, {1000 * beside:.0f} ms beside {len(statuses)} hostile grammars")
            self.assertTrue(statuses and all(status < 500 for status in statuses), statuses)
            self.assertLess(beside, 1.0 + quiet)
            server.wait_idle()

    def test_many_stop_strings_cost_a_token_no_more_than_one(self):
        stops = [f"\u0394 stop number {number:03} that never comes" for number in range(16)]
        with Server() as server:
            def computed():
                fields = pathlib.Path(f"/proc/{server.pid}/stat").read_text().rsplit(") ", 1)[1].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

            def seconds(**fields):
                # Processor time: waiting for a busy machine is no cost.
                before = computed()
                server.text(max_tokens=2000, **fields)
                return computed() - before

            seconds()
            pairs = [(seconds(stop=stops[:1]), seconds(stop=stops)) for _ in range(4)]
            one, many = (min(times) for times in zip(*pairs))
            print(f"2,000 tokens with one stop string in {one:.2f} s of processor time, with {len(stops)} in {many:.2f} s")
            self.assertLess(many, 1.5 * one)


class Refusals(unittest.TestCase):
    def test_absurd_parameters_are_refused_before_anything_is_allocated(self):
        absurd = [
            {"n": 2**31}, {"best_of": 10**9}, {"max_tokens": 2**40}, {"logprobs": 10**6}, {"n": 128, "max_tokens": 2**31},
            {"prompt": [2**32] * 4}, {"logit_bias": {str(2**40): 1}}, {"stop": ["x" * 10**5]}, {"min_tokens": 2**33},
            {"truncate_prompt_tokens": 2**40}, {"stop_token_ids": [2**40]}, {"guided_choice": []}, {"top_k": 2**40},
        ]  # fmt: skip
        with Server("--disable-log-requests") as server:
            server.text()
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            before, times = server.rss_kb(), []
            for _ in range(30):
                for fields in absurd:
                    body = json.dumps(completion(**fields))
                    begun = time.perf_counter()
                    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    response.read()
                    times.append(1000 * (time.perf_counter() - begun))
                    self.assertEqual(response.status, 400, fields)
            grown = server.rss_kb() - before
            times.sort()
            print(f"{len(times)} refusals: median {times[len(times) // 2]:.2f} ms, longest {times[-1]:.2f} ms, {grown} KB more")
            self.assertLess(times[len(times) // 2], 5)
            self.assertLess(grown, 2 << 10)


class Gguf(unittest.TestCase):
    FILE = tiny_model.FIXTURE.parents[3] / "crates" / "checkpoint" / "fixtures" / "every_type.gguf"

    def test_damaged_gguf_files_are_refused_by_name_in_little_memory(self):
        whole, generator = self.FILE.read_bytes(), random.Random(2)
        with Server() as server:
            path = pathlib.Path(server.folder.name) / "bad.gguf"
            damages = [whole[:kept] for kept in [0, 3, 4, 8, 23, 24, 100, 1000, len(whole) // 2]]
            # Counts and lengths that claim more than there is.
            damages += [whole[:8] + (2**60).to_bytes(8, "little") + whole[16:], whole[:16] + (2**60).to_bytes(8, "little") + whole[24:]]
            for _ in range(10):
                at = generator.randrange(24, 1500)
                damages.append(whole[:at] + b"\xff\xff\xff\x7f" + whole[at + 4 :])
            for number, damaged in enumerate(damages):
                with self.subTest(number):
                    path.write_bytes(damaged)
                    code, output = run_to_end("plan", path)
                    errors = [line for line in output.splitlines() if line.startswith("error: ")]
                    self.assertNotIn("panicked", output)
                    if code == 0:
                        # The damage hit what a plan does not look at.
                        self.assertGreater(number, 10)
                        continue
                    self.assertTrue(1 <= code <= 127, (code, output))
                    self.assertEqual(len(errors), 1, output)
                    self.assertIn("bad.gguf", output)


if __name__ == "__main__":
    unittest.main()
