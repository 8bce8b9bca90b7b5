"""SIGTERM, SIGINT and SIGKILL against a real process with open streams."""

import json
import pathlib
import signal
import time
import unittest

from server import Server, completion, events, read_all, read_some, run_to_end, streamed_text, wait_for

LONG = {"max_tokens": 12_000, "prompt": "A long story"}


class Signals(unittest.TestCase):
    def test_a_sigterm_drains_every_open_stream_and_ends_with_0(self):
        with Server() as server:
            alone = server.text(max_tokens=1500)
            streams = [server.open_stream(max_tokens=1500) for _ in range(10)]
            begun = [read_some(stream, b"200 OK") for stream in streams]
            server.stop()
            server.stop()  # as `timeout` does, which signals the process and its group
            wait_for(lambda: server.get("/ready")[0] == 503, "not ready", 2)
            status, headers, _ = server.post("/v1/completions", completion())
            self.assertEqual((status, "retry-after" in headers), (503, True))
            self.assertEqual(server.get("/health")[0], 200)
            for stream, start in zip(streams, begun):
                self.assertEqual(streamed_text(start + read_all(stream)), alone)
            self.assertEqual(server.wait_end(), 0)

    def test_what_a_drain_cannot_wait_for_gets_a_final_error_event(self):
        with Server("--drain-timeout", "1") as server:
            streams = [server.open_stream(**LONG) for _ in range(8)]
            for stream in streams:
                read_some(stream, b"data: ")
            begun = time.monotonic()
            server.stop()
            for stream in streams:
                parsed, done = events(read_all(stream))
                self.assertTrue(done)
                self.assertIn("shutting down", parsed[-1]["error"]["message"])
            self.assertEqual(server.wait_end(), 0)
            self.assertLess(time.monotonic() - begun, 1 + 2)

    def test_a_second_signal_ends_at_once(self):
        with Server() as server:
            stream = server.open_stream(**LONG)
            read_some(stream, b"data: ")
            server.stop()
            wait_for(lambda: "have 30 s to finish" in server.log(), "a drain", 5)
            time.sleep(0.1)
            begun = time.monotonic()
            server.stop(signal.SIGINT)
            server.wait_end()
            self.assertLess(time.monotonic() - begun, 1)
            self.assertFalse(events(read_all(stream))[1], "a stream that was cut must not look complete")

    def test_an_idle_server_ends_at_once(self):
        for number in [signal.SIGTERM, signal.SIGINT]:
            with Server() as server:
                begun = time.monotonic()
                server.stop(number)
                self.assertEqual(server.wait_end(), 0)
                self.assertLess(time.monotonic() - begun, 1)

    def test_a_sigkill_cuts_streams_visibly_and_a_restart_answers_the_same(self):
        with Server() as first:
            port = first.port
            alone = first.text(max_tokens=200)
            for kill in range(10):
                # The first server, then its successors on the same port; each is killed at another point.
                server = first if kill == 0 else Server("--port", str(port), model=first.model)
                stream = server.open_stream(**LONG)
                read_some(stream, b"data: ")
                time.sleep(0.007 * kill)
                server.stop(signal.SIGKILL)
                self.assertEqual(server.wait_end(), -signal.SIGKILL)
                self.assertFalse(events(read_all(stream))[1], "a stream that was cut must not look complete")
                server.folder.cleanup() if server is not first else None
            with Server("--port", str(port), model=first.model) as last:
                self.assertEqual(last.text(max_tokens=200), alone)

    def test_a_recording_replays_also_after_a_sigkill(self):
        flags = ["--num-gpu-blocks-override", "300", "--max-num-batched-tokens", "256", "--record", "r.trace"]
        with Server(*flags) as server:
            trace = pathlib.Path(server.folder.name) / "r.trace"
            streams = [server.open_stream(max_tokens=300, prompt=f"Prompt {n}", n=1 + n % 2, seed=n) for n in range(40)]
            for number, stream in enumerate(streams):
                if number % 5 == 0:
                    stream.close()
                else:
                    read_all(stream)
            server.post("/v1/completions", {"prompt": [1] * 20, "repetition_penalty": 1.3, "logit_bias": {"7": 2.5}})
            self.assertGreater(server.metric("vllm:num_preemptions_total"), 0)
            stream = server.open_stream(max_tokens=4000)
            read_some(stream, b"data: ")
            server.stop(signal.SIGKILL)
            server.wait_end()
            code, output = run_to_end("replay", trace)
            self.assertEqual(code, 0, output)
            self.assertRegex(output, r"4[0-9] requests, \d+ aborts, \d+ steps: the same decisions")
            # A decision that is changed in the file is found.
            lines = trace.read_text().splitlines(keepends=True)
            at = next(index for index, line in enumerate(lines) if index > 500 and line.startswith('{"Begin":{'))
            entry = json.loads(lines[at])
            entry["Begin"]["slot_mapping"][0] += 1
            lines[at] = json.dumps(entry) + "\n"
            trace.write_text("".join(lines))
            code, output = run_to_end("replay", trace)
            self.assertEqual(code, 1, output)
            self.assertIn(f"entry {at - 1} of the trace: slot_mapping[0] was planned as", output)


if __name__ == "__main__":
    unittest.main()
