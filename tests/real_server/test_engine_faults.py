"""Faults inside: a dead or hanging engine, a device that fails, numbers that are not finite, too few blocks."""

import json
import math
import pathlib
import struct
import tempfile
import time
import unittest

import tiny_model
from server import Server, completion, events, read_all, streamed_text, wait_for


def planted(fault):
    return {"FIREBRICK_PLANTED_FAULT": fault}


class EngineThread(unittest.TestCase):
    def test_an_engine_that_panics_or_fails_ends_streams_health_and_process(self):
        for fault, reason in [("panic@200", "panicked"), ("fail@200", "failure of the device")]:
            with self.subTest(fault), Server(environment=planted(fault)) as server:
                streams = [server.open_stream(max_tokens=4000) for _ in range(5)]
                begun = time.monotonic()
                for stream in streams:
                    parsed, done = events(read_all(stream))
                    self.assertEqual(parsed[-1]["error"]["code"], 500)
                    self.assertTrue(done)
                code = server.wait_end(5)
                self.assertTrue(1 <= code <= 127, code)
                self.assertLess(time.monotonic() - begun, 5)
                self.assertIn("the engine has died", server.log())
                self.assertIn(reason, server.log())

    def found_dead(self, fault):
        """An engine with this fault is found within its time, and takes no new work."""
        with Server(environment=planted(fault)) as server:
            begun = time.monotonic()
            stream = server.open_stream(max_tokens=4000)
            wait_for(lambda: server.get("/health")[0] == 503, "unhealthy", 8)
            self.assertLess(time.monotonic() - begun, 6.5)
            self.assertEqual(server.get("/ready")[0], 503)
            stream.close()

    def test_an_engine_that_hangs_turns_health_to_503_within_its_time(self):
        self.found_dead("hang@50")

    def test_an_engine_that_computes_for_ever_is_found_too(self):
        self.found_dead("spin@50")

    def test_a_long_step_is_no_dead_engine(self):
        with Server(environment=planted("slow@1")) as server:
            begun = time.monotonic()
            stream = server.open_stream(prompt="long " * 300, max_tokens=8)
            while time.monotonic() - begun < 7.5:
                self.assertEqual(server.get("/health")[0], 200, f"after {time.monotonic() - begun:.1f} s")
                time.sleep(0.2)
            self.assertTrue(streamed_text(read_all(stream)))
            self.assertGreater(time.monotonic() - begun, 7.5)

    def test_a_panic_in_a_handler_is_a_500_for_that_request_alone(self):
        with Server(environment=planted("handler@3")) as server:
            statuses = [server.post("/v1/completions", completion())[0] for _ in range(6)]
            self.assertEqual(statuses, [200, 200, 500, 200, 200, 200])
            server.wait_idle()


class NotFinite(unittest.TestCase):
    def test_only_the_request_with_unusable_logits_ends(self):
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model.write(pathlib.Path(folder) / "broken")
            vocabulary = tiny_model.tokenizer()["model"]["vocab"]
            poison_embedding(model / "model.safetensors", vocabulary["Z"])
            with Server(model=model) as server, Server() as sound:
                prompts = [f"Prompt {number}" for number in range(8)]
                good = {"max_tokens": 300, "logit_bias": {str(vocabulary["Z"]): -100}}
                expected = [sound.text(prompt=prompt, **good) for prompt in prompts]
                streams = [server.open_stream(prompt=prompt, **good) for prompt in prompts]
                bad = [server.post("/v1/completions", completion(prompt="A Z", max_tokens=50)) for _ in range(5)]
                for status, _, body in bad:
                    self.assertEqual(status, 500)
                    self.assertIn("not finite", json.loads(body)["error"]["message"])
                self.assertEqual([streamed_text(read_all(stream)) for stream in streams], expected)
                self.assertEqual(server.metric('vllm:request_success_total{model_name="tiny",engine="0",finished_reason="error"}'), 5)
                server.wait_idle()


def poison_embedding(path, token):
    """Makes one token's embedding NaN."""
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    tensor = json.loads(data[8 : 8 + length])["model.embed_tokens.weight"]
    width = tensor["shape"][1]
    at = 8 + length + tensor["data_offsets"][0] + 4 * width * token
    data[at : at + 4 * width] = struct.pack("<f", math.nan) * width
    path.write_bytes(data)


class TooFewBlocks(unittest.TestCase):
    def test_answers_are_equal_with_a_twentieth_of_the_blocks(self):
        prompts = [f"Prompt {number} " * 4 for number in range(24)]
        answers = []
        for blocks in ["2000", "100"]:
            with Server("--num-gpu-blocks-override", blocks) as server:
                streams = [server.open_stream(prompt=prompt, max_tokens=250, seed=1, temperature=0.9) for prompt in prompts]
                answers.append([streamed_text(read_all(stream)) for stream in streams])
                preemptions = server.metric("vllm:num_preemptions_total")
                self.assertEqual(preemptions > 0, blocks == "100")
                server.wait_idle()
        self.assertEqual(answers[0], answers[1])

    def test_what_can_never_fit_is_refused_at_the_door(self):
        with Server("--num-gpu-blocks-override", "10") as server:
            status, _, body = server.post("/v1/completions", completion(max_tokens=500))
            self.assertEqual(status, 400)
            self.assertRegex(json.loads(body)["error"]["message"], "maximum context length is 160 tokens")
            self.assertEqual(len(server.text(max_tokens=100)) > 0, True)


if __name__ == "__main__":
    unittest.main()
