"""The commands that are clients or need no server: chat, complete, learn --url, run-batch."""

import json
import os
import pathlib
import pty
import subprocess
import tempfile
import unittest

import tiny_model
from server import BINARY, Server, completion, run_to_end


def talk(*arguments, typed="", environment=None, terminal=False):
    """(exit code, standard output, standard error) of a command with this input: from a pipe, or typed at a terminal."""
    theirs, ours = pty.openpty() if terminal else os.pipe()[::-1]
    os.write(theirs, typed.encode())
    if not terminal:
        os.close(theirs)
    done = subprocess.run(
        [os.path.abspath(BINARY), *arguments], stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
        env={**os.environ, "NO_COLOR": "1", **(environment or {})},
    )  # fmt: skip
    os.close(ours)
    if terminal:
        os.close(theirs)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Clients(unittest.TestCase):
    def test_quick_messages_print_the_answer_of_the_server(self):
        with Server() as server:
            url = f"http://127.0.0.1:{server.port}/v1"
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
            body = {"messages": messages, "max_tokens": 24, "temperature": 0}
            status, _, answer = server.post("/v1/chat/completions", body)
            expected = json.loads(answer)["choices"][0]["message"]["content"]
            usual = ["--url", url, "--max-tokens", "24", "--temperature", "0"]
            code, out, err = talk("chat", *usual, "--system-prompt", "Be brief.", "-q", "Hi")
            self.assertEqual((code, out.removesuffix("\n"), err, status), (0, expected.removesuffix("\n"), "", 200))
            expected = server.text(prompt="Hi", max_tokens=24, ignore_eos=False)
            code, out, _ = talk("complete", *usual, "--model-name", "tiny", "--quick", "Hi")
            self.assertEqual((code, out.removesuffix("\n")), (0, expected.removesuffix("\n")))

    def test_a_conversation_remembers_and_forgets(self):
        with Server("--api-key", "secret") as server:
            usual = ["--url", f"http://127.0.0.1:{server.port}", "--max-tokens", "16", "--temperature", "0"]
            key = {"OPENAI_API_KEY": "secret"}
            lines = "Hi\nHi\n/reset\nHi\n/nothing\n/exit\n"
            code, out, err = talk("chat", *usual, typed=lines, environment=key, terminal=True)
            self.assertEqual((code, err), (0, ""))
            self.assertIn("/help lists the commands", out)
            first, second, reset, third, unknown = out.split(">>> ")[1:6]
            code, piped, err = talk("chat", *usual, typed=lines, environment=key)
            self.assertEqual((code, err, piped), (0, "", out[out.index(">>> "):].replace(">>> ", "")))
            self.assertEqual(first, third)
            self.assertNotEqual(first, second)
            self.assertIn("forgotten", reset)
            self.assertIn("There is no /nothing", unknown)
            code, out, err = talk("chat", *usual, "--api-key", "wrong", "-q", "Hi")
            self.assertEqual((code, out), (1, ""))
            self.assertIn("401", err)

    def test_what_the_server_refuses_is_said_and_the_conversation_goes_on(self):
        with Server("--max-model-len", "64") as server:
            usual = ["--url", f"http://127.0.0.1:{server.port}", "--temperature", "0"]
            code, out, err = talk("complete", *usual, "--max-tokens", "8", typed=f"{'x' * 100}\nHi\n")
            self.assertEqual(code, 0)
            self.assertIn("400", err)
            self.assertIn(server.text(prompt="Hi", max_tokens=8, ignore_eos=False), out)
            code, _, err = talk("chat", *usual, "--model-name", "other", "-q", "Hi")
            self.assertEqual(code, 1)
            self.assertIn("does not exist", err)
        code, _, err = talk("chat", "--url", "http://127.0.0.1:9", "-q", "Hi")
        self.assertEqual(code, 1)
        self.assertIn("is the server running?", err)

    def test_empty_variables_are_as_good_as_none(self):
        with Server(environment={"METRICS_PORT": "", "VLLM_API_KEY": "", "FIREBRICK_DEVICE": ""}) as server:
            self.assertEqual(server.get("/health")[0], 200)

    def test_a_comparison_of_nothing_does_not_pass_its_check(self):
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model.write(pathlib.Path(folder) / "tiny")
            self.assertEqual(run_to_end("compare", model, "--backends", "cpu")[0], 0)
            code, output = run_to_end("compare", model, "--backends", "cpu", "--check")
        self.assertEqual(code, 1, output)
        self.assertIn("nothing was compared", output)

    def test_learn_runs_its_ten_steps_on_a_model(self):
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model.write(pathlib.Path(folder) / "tiny")
            _, output = run_to_end("learn", model, "--device", "cpu", "--num-gpu-blocks-override", "256")
        steps = output.split("Step ")[1:]
        self.assertEqual([step.split(" ")[0] for step in steps], [str(number) for number in range(1, 11)])
        # Of a model this small the clock tells nothing: batching and streaming, which ask it, may fail.
        for number, step in enumerate(steps, 1):
            self.assertRegex(step, r"\[(OK|NO)\]" if number in [5, 8] else r"\[OK\]")

    def test_learn_tests_a_server(self):
        with Server() as server:
            url = f"http://127.0.0.1:{server.port}"
            for test in ["single", "paging", "sampling"]:
                code, output = run_to_end("learn", "--url", url, "--test", test)
                self.assertEqual((code, output.count("[OK]")), (0, 1), output)
            # Of a model this small the clock tells nothing: the times are only shown.
            _, output = run_to_end("learn", "--url", url, "--test", "batch", "--num-requests", "2")
            self.assertIn("2 at once: ", output)


def line(custom_id, url="/v1/completions", **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


class Batches(unittest.TestCase):
    def run_batch(self, lines, *flags):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "in.jsonl").write_text("\n".join(lines))
            code, output = run_to_end(
                "run-batch", "-i", root / "in.jsonl", "-o", root / "out.jsonl", tiny_model.write(root / "tiny"),
                "--served-model-name", "tiny", "--device", "cpu", "--num-gpu-blocks-override", "4096", *flags,
            )  # fmt: skip
            self.assertEqual(code, 0, output)
            return output, [json.loads(answer) for answer in (root / "out.jsonl").read_text().splitlines()]

    def test_every_line_is_answered_in_order_as_a_server_would(self):
        prompts = [f"Story {number}" for number in range(40)]
        chat = [{"role": "user", "content": "Hi"}]
        lines = [line(str(number), **completion(prompt=prompt)) for number, prompt in enumerate(prompts)]
        lines[10:10] = ["", "nonsense", line("wrong", **completion(temperature=-1))]
        lines.append(line("chat", "/v1/chat/completions", messages=chat, max_tokens=8, temperature=0))
        output, answers = self.run_batch(lines, "--max-num-seqs", "4")
        self.assertIn("41 answers and 2 errors", output)
        ids = [answer["custom_id"] for answer in answers]
        self.assertEqual(ids, [*map(str, range(10)), None, "wrong", *map(str, range(10, 40)), "chat"])
        self.assertIn("line 12", answers[10]["error"]["message"])
        self.assertEqual(answers[11]["response"]["status_code"], 400)
        answers = {answer["custom_id"]: answer["response"]["body"] for answer in answers if answer["response"]}
        with Server() as server:
            for number, prompt in enumerate(prompts):
                self.assertEqual(answers[str(number)]["choices"][0]["text"], server.text(prompt=prompt))

    def test_a_line_that_is_too_long_hurts_no_other(self):
        lines = [line("a", **completion()), line("b", **completion(prompt="x" * 5000)), line("c", **completion())]
        _, answers = self.run_batch(lines, "--max-line-size", "1000")
        self.assertEqual([answer["custom_id"] for answer in answers], ["a", None, "c"])
        self.assertIn("line 2: longer than 1000 bytes", answers[1]["error"]["message"])
