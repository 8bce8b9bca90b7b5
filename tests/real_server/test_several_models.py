"""Several real models in one process: told apart, loaded and unloaded while others answer."""

import json
import os
import pathlib
import re
import shutil
import tempfile
import threading
import unittest

import tiny_model
from server import Server, completion, events, read_all, read_some, run_to_end, wait_for

ADMIN = {"Authorization": "Bearer chief"}


def write_qwen3(folder):
    """Another architecture with the same vocabulary, so that the tiny tokenizer serves it too."""
    folder = tiny_model.write(folder)
    fixture = tiny_model.FIXTURE.parent / "qwen3"
    shutil.copy(fixture / "model.safetensors", folder)
    config = json.loads((fixture / "config.json").read_text())
    config["max_position_embeddings"] = tiny_model.LENGTH
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Pair(Server):
    """`firebrick serve` with the models `tiny` and `qwen3`."""

    def __init__(self, *flags, folder):
        root = pathlib.Path(folder)
        self.other = write_qwen3(root / "qwen3")
        names = ["--served-model-name", "tiny", "qwen3"]
        super().__init__(str(self.other), *names, "--max-model-len", "512", "--num-gpu-blocks-override", "512", *flags)

    def operate(self, path, **body):
        status, _, answer = self.post(path, body, headers=ADMIN)
        return status, json.loads(answer)

    def names(self):
        return [card["id"] for card in json.loads(self.get("/v1/models")[2])["data"]]


class SeveralModels(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="firebrick-models-")
        self.addCleanup(self.folder.cleanup)

    def test_each_answers_as_it_does_alone_also_when_both_are_busy(self):
        with Pair(folder=self.folder.name) as pair:
            alone = {}
            for name, model in [("tiny", pair.model), ("qwen3", pair.other)]:
                with Server("--served-model-name", name, "--max-model-len", "512", model=model) as single:
                    alone[name] = [single.text(model=name, prompt=f"Story {number}", max_tokens=100) for number in range(8)]
            self.assertNotEqual(alone["tiny"], alone["qwen3"])
            texts = {"tiny": {}, "qwen3": {}}

            def ask(name, number):
                texts[name][number] = pair.text(model=name, prompt=f"Story {number}", max_tokens=100)

            threads = [threading.Thread(target=ask, args=(name, number)) for number in range(8) for name in texts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for name in texts:
                self.assertEqual([texts[name][number] for number in range(8)], alone[name])
            self.assertEqual(pair.names(), ["tiny", "qwen3"])
            self.assertEqual(pair.post("/v1/completions", completion(model="third"))[0], 404)
            for name in texts:
                self.assertEqual(pair.metric(f'vllm:generation_tokens_total{{model_name="{name}"'), 800)
            pair.stop()
            self.assertEqual(pair.wait_end(), 0)

    def test_models_come_and_go_while_others_answer(self):
        with Pair("--admin-key", "chief", "--max-models", "2", folder=self.folder.name) as pair:
            expected = pair.text(model="qwen3")
            full, answer = pair.operate("/v1/models/load", model=str(pair.other), served_model_name="again")
            self.assertEqual(full, 400)
            self.assertIn("--max-models", answer["error"]["message"])
            stream = pair.open_stream(model="qwen3", max_tokens=400)
            begun = read_some(stream, b"data: ")
            status, answer = pair.operate("/v1/models/unload", model="qwen3")
            self.assertEqual((status, answer["all_requests_finished"]), (200, True))
            parsed, done = events(begun + read_all(stream))
            self.assertTrue(done)
            self.assertEqual(parsed[-1]["choices"][0]["finish_reason"], "length")
            self.assertEqual((pair.names(), pair.post("/v1/completions", completion(model="qwen3"))[0]), (["tiny"], 404))
            threads = pair.num_threads()
            for _ in range(3):
                status, answer = pair.operate("/v1/models/load", model=str(pair.other), served_model_name=["again", "qwen3"])
                self.assertEqual((status, [card["id"] for card in answer["data"]]), (200, ["again", "qwen3"]), answer)
                self.assertEqual(pair.text(model="again"), expected)
                self.assertEqual(pair.operate("/v1/models/unload", model="again", timeout=5)[0], 200)
            # A few threads of the pool for blocking work may still wait for more.
            wait_for(lambda: pair.num_threads() <= threads + 8, "the engines' threads to end", 30)
            status, answer = pair.operate("/v1/models/load", model="/no/such/model")
            self.assertEqual(status, 400)
            self.assertEqual(pair.operate("/v1/models/unload", model="tiny")[0], 400, "the only model stays")
            self.assertEqual(pair.post("/v1/models/load", {"model": "x"})[0], 401)
            self.assertTrue(pair.text(model="tiny"))

    def test_an_end_does_not_wait_for_a_model_that_is_being_loaded(self):
        stuck = pathlib.Path(self.folder.name) / "stuck"
        stuck.mkdir()
        os.mkfifo(stuck / "config.json")
        with Server("--max-models", "2", "--admin-key", "chief") as server:
            body = json.dumps({"model": str(stuck)}).encode()
            head = "POST /v1/models/load HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer chief\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            stream = server.send_raw(head.encode() + body)
            wait_for(lambda: f"loading {stuck}" in server.log(), "a load under way", 10)
            self.assertEqual(server.post("/v1/models/load", {"model": "x"}, headers=ADMIN)[0], 503)
            self.assertTrue(server.text())
            server.stop()
            self.assertEqual(server.wait_end(10), 0)
            stream.close()

    def test_the_memory_for_keys_and_values_is_divided_evenly(self):
        model = tiny_model.write(pathlib.Path(self.folder.name) / "m")

        def blocks(*flags):
            with Server("--max-model-len", "512", *flags, model=model, without=["--num-gpu-blocks-override"]) as server:
                if "--max-models" in flags:
                    body = {"model": str(model), "served_model_name": "third"}
                    self.assertEqual(server.post("/v1/models/load", body, headers=ADMIN)[0], 200)
                return [int(number) for number in re.findall(r"KV cache: (\d+) blocks", server.log())]

        [alone] = blocks()
        several = blocks(str(model), "--served-model-name", "a", "b", "--max-models", "3", "--admin-key", "chief")
        self.assertEqual(several, [alone // 3] * 3)

    def test_what_several_models_cannot_mean_is_refused(self):
        model = tiny_model.write(pathlib.Path(self.folder.name) / "m")
        for flags, part in [
            ([model], "given twice"),
            (["other", "--served-model-name", "one", "two", "three"], "3 names for 2 models"),
            (["other", "--max-models", "1"], "--max-models is 1"),
            (["other", "--chat-template", "{{ x }}"], "--chat-template"),
            (["other", "--record", "/tmp/never-written"], "--record"),
        ]:
            code, output = run_to_end("serve", model, *flags)
            self.assertEqual(code, 2, output)
            self.assertIn(part, output)
        code, output = run_to_end("run", "--model", model, "--model", model)
        self.assertEqual((code, "takes one" in output), (2, True), output)
