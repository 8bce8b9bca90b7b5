"""Damaged checkpoints end the process with one line that names the file; full disks end nothing."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import tiny_model
from server import Server, run_to_end, wait_for


class BrokenCheckpoints(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.good = tiny_model.write(pathlib.Path(self.folder.name) / "good")

    def refused(self, name, damage):
        """Loads a copy in which `damage` has changed the file, and returns the one line that says why not."""
        bad = pathlib.Path(self.folder.name) / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(self.good, bad)
        damage(bad / name)
        command = ["run", bad, "--prompt", "Once", "--max-tokens", "2", "--device", "cpu", "--num-gpu-blocks-override", "9"]
        code, output = run_to_end(*command)
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        self.assertTrue(1 <= code <= 127, (name, code, output))
        self.assertEqual(len(errors), 1, (name, output))
        self.assertNotIn("panicked", output)
        self.assertLess(len(errors[0]), 1000)
        return errors[0]

    def test_truncated_files_are_refused_by_name(self):
        for name in ["model.safetensors", "config.json", "tokenizer.json"]:
            size = (self.good / name).stat().st_size
            for kept in [0, 1, 7, 8, 9, 100, size // 2, size - 1]:
                line = self.refused(name, lambda path: os.truncate(path, kept))
                self.assertIn(name.split(".")[0], line, f"{name} cut to {kept} bytes")

    def test_missing_files_are_refused_by_name(self):
        for name in ["model.safetensors", "config.json", "tokenizer.json"]:
            self.assertRegex(self.refused(name, pathlib.Path.unlink), "safetensors|config.json|tokenizer")

    def test_fields_that_lie_are_refused_by_name(self):
        lies = [
            ("hidden_size", 33), ("hidden_size", 0), ("hidden_size", -1), ("hidden_size", 2**63), ("hidden_size", "32"),
            ("num_hidden_layers", 3), ("num_hidden_layers", 0), ("num_hidden_layers", 10**9),
            ("num_attention_heads", 0), ("num_attention_heads", 3), ("num_key_value_heads", 3),
            ("num_key_value_heads", 0), ("vocab_size", 129), ("vocab_size", 10**12), ("head_dim", 0), ("head_dim", 15),
            ("intermediate_size", 65), ("max_position_embeddings", 0), ("rms_norm_eps", "x"), ("rope_theta", 0),
            ("rope_theta", -1.0), ("architectures", ["Unheard"]), ("hidden_act", "unheard"),
            ("rope_scaling", {"rope_type": "unheard"}), ("torch_dtype", "int3"),
        ]  # fmt: skip
        for field, value in lies:
            with self.subTest(field, value=value):
                self.refused("config.json", lambda path: change_json(path, field, value))

    def test_safetensors_headers_that_lie_are_refused(self):
        def header(**changes):
            def damage(path):
                data = path.read_bytes()
                length = int.from_bytes(data[:8], "little")
                parsed = json.loads(data[8 : 8 + length])
                parsed["model.norm.weight"].update(changes)
                text = json.dumps(parsed).encode()
                path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

            return damage

        def length(value):
            return lambda path: path.write_bytes(value.to_bytes(8, "little") + path.read_bytes()[8:])

        damages = [
            header(data_offsets=[0, 2**62]), header(data_offsets=[-1, 5]), header(data_offsets=[9, 5]),
            header(shape=[2**40, 2**40]), header(shape=[33]), header(shape=[-1]), header(shape=[]),
            header(dtype="F4"), header(dtype="I64"), header(dtype=None), header(data_offsets=None),
            length(0), length(1), length(2**63), length(2**64 - 1), length(10**7),
        ]  # fmt: skip
        for number, damage in enumerate(damages):
            with self.subTest(number):
                self.assertIn("safetensors", self.refused("model.safetensors", damage))

    def test_a_model_that_cannot_be_loaded_ends_the_server(self):
        (self.good / "model.safetensors").write_bytes(b"\0" * 100)
        with Server(model=self.good, wait=False) as server:
            self.assertTrue(1 <= server.wait_end(20) <= 127)
            self.assertIn("model.safetensors", server.log())


def change_json(path, field, value):
    parsed = json.loads(path.read_text())
    parsed[field] = value
    path.write_text(json.dumps(parsed))


class HostileTemplates(unittest.TestCase):
    def test_templates_that_never_end_are_refused_in_time(self):
        loops = [
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x" + "{% endfor %}" * 3,
            "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
            "{{ 'x' * 1000000000000 }}",
            "{{ range(10000000000) | list }}",
            "{{ messages[99].content.nothing }}",
            "{{ raise_exception('no') }}",
        ]
        for template in loops:
            with self.subTest(template), tempfile.TemporaryDirectory() as folder:
                model = tiny_model.write(pathlib.Path(folder) / "m")
                change_json(model / "tokenizer_config.json", "chat_template", template)
                with Server(model=model) as server:
                    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
                    before = server.rss_kb()
                    status, _, reply = server.post("/v1/chat/completions", body, timeout=5)
                    self.assertEqual(status, 400, reply)
                    self.assertLess(server.rss_kb() - before, 200 << 10)
                    self.assertTrue(server.text())


class FullDisk(unittest.TestCase):
    def test_a_full_disk_ends_logs_and_recordings_but_not_the_server(self):
        if os.geteuid() != 0:
            self.skipTest("mounting a small file system needs root")
        with tempfile.TemporaryDirectory() as disk:
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
                self.skipTest("a small file system cannot be mounted here")
            try:
                with Server("--log-file", f"{disk}/server.log", "--record", f"{disk}/r.trace") as server:
                    for number in range(30):
                        self.assertTrue(server.text(prompt=f"Prompt {number}", max_tokens=50))
                    wait_for(lambda: "the recording ends here" in server.log(), "word of the full disk", 5)
                    self.assertEqual(server.get("/health")[0], 200)
                    free = os.statvfs(disk)
                    self.assertEqual(free.f_bavail, 0, "the disk is full, or this test shows nothing")
                    server.stop()
                    self.assertEqual(server.wait_end(), 0)
            finally:
                subprocess.run(["umount", disk], check=True)

    def test_a_recording_is_never_written_over(self):
        with Server("--record", "r.trace") as server:
            with Server("--record", f"{server.folder.name}/r.trace", wait=False) as second:
                self.assertEqual(second.wait_end(10), 1)
                self.assertIn("must be a new file", second.log())


if __name__ == "__main__":
    unittest.main()
