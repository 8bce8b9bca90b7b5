"""No request sees, bends or betrays another: every option mixed at random in one batch; keys, names and logs."""

import concurrent.futures
import json
import random
import unittest

from server import Server, streamed_text, read_all, completion

CHOICES = {
    "temperature": [0, 0.2, 0.7, 1.0, 1.5, 2.0],
    "top_p": [0.1, 0.5, 0.9, 1.0],
    "top_k": [-1, 1, 2, 5, 40, 127],
    "min_p": [0.0, 0.05, 0.3],
    "frequency_penalty": [-2.0, -0.5, 0.5, 2.0],
    "presence_penalty": [-2.0, 0.7, 2.0],
    "repetition_penalty": [0.8, 1.1, 1.9],
    "logit_bias": [{"40": 5}, {"50": -100, "51": -100}, {str(token): -3 for token in range(20, 100)}],
    "stop": ["e", ["a", "Q"], ["xyz", "@"], ["never there"]],
    "include_stop_str_in_output": [True],
    "stop_token_ids": [[44, 45, 46], [70]],
    "allowed_token_ids": [[5, 6, 7, 8, 40, 41, 60], list(range(30, 90))],
    "bad_words": [["e", "th"], ["A"]],
    "min_tokens": [1, 12],
    "ignore_eos": [True, False],
    "logprobs": [0, 1, 5],
    "prompt_logprobs": [0, 3],
    "n": [1, 2, 3],
    "echo": [True],
    "priority": [0],
    "cache_salt": ["one", "two"],
    "skip_special_tokens": [False],
    "seed": [1, 2, 3, 12345678901],
    "guided_regex": ["[a-m]{5,40}", "(yes|no|maybe)+"],
    "guided_choice": [["red", "green", "blue"]],
    "guided_json": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}],
}
ALONE_ONLY = {"guided_regex", "guided_choice", "guided_json"}
NAMES = ["Once", "The", "A b c", "Prompt {}", "0 1 2 3 4 5 6 7 8 9 10 11", "x" * 100, "Once upon a time there was"]


def known_options(server):
    """The options that this server takes; what it refuses by name cannot leak."""
    known = {}
    for name, values in CHOICES.items():
        status, _, body = server.post("/v1/completions", completion(**{name: values[0]}))
        if status == 200:
            known[name] = values
        else:
            assert status == 400, (name, status, body)
    return known


def draw(generator, known):
    body = {"prompt": generator.choice(NAMES).format(generator.randrange(50)), "max_tokens": generator.randrange(1, 60)}
    constraint = generator.choice(sorted(ALONE_ONLY))
    for name, values in known.items():
        if name in ALONE_ONLY and (name != constraint or generator.random() < 0.8):
            continue
        if generator.random() < 0.3:
            body[name] = generator.choice(values)
    # Without a seed of its own a draw depends on the request's number, which differs between the two runs.
    body.setdefault("seed", generator.randrange(1 << 40))
    body.setdefault("temperature", 1.0)
    if body.get("min_tokens", 0) > body["max_tokens"]:
        del body["min_tokens"]
    return body


def comparable(answer):
    status, _, body = answer
    parsed = json.loads(body)
    for name in ["id", "created", "vllm_stats", "usage"]:
        parsed.pop(name, None)
    return status, parsed


class Isolation(unittest.TestCase):
    def test_every_answer_in_a_mixed_batch_equals_the_same_request_alone(self):
        generator = random.Random(7)
        with Server("--num-gpu-blocks-override", "90", "--max-model-len", "512", "--disable-log-requests") as server:
            known = known_options(server)
            self.assertGreaterEqual(len(known), 16, sorted(known))
            bodies = [draw(generator, known) for _ in range(300)]
            alone = [comparable(server.post("/v1/completions", body)) for body in bodies]
            refused = [(body, one) for body, one in zip(bodies, alone) if one[0] != 200]
            broken = [pair for pair in refused if pair[1][0] != 400]
            self.assertEqual(broken, [])
            self.assertLess(len(refused), 150, refused[:3])
            # How many run at once depends on how fast this process sends them.
            preempted = lambda: server.metric("vllm:num_preemptions_total")
            for _ in range(5):
                order = generator.sample(range(len(bodies)), len(bodies))
                sockets = [(at, server.send_raw(server.raw_request(bodies[at]))) for at in order]
                for at, stream in sockets:
                    head, _, body = read_all(stream).partition(b"\r\n\r\n")
                    self.assertEqual(comparable((int(head.split()[1]), {}, body)), alone[at], bodies[at])
                if preempted() > 0:
                    break
            self.assertGreater(preempted(), 0, "the pool was meant to be too small")
            server.wait_idle()

    def test_requests_with_one_id_are_independent(self):
        with Server() as server:
            prompts = [f"Prompt {number}" for number in range(8)]
            alone = [server.text(prompt=prompt, max_tokens=100) for prompt in prompts]
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                same = {"X-Request-Id": "the-same"}
                ask = lambda prompt: server.post("/v1/completions", completion(prompt=prompt, max_tokens=100), headers=same)
                answers = [json.loads(body)["choices"][0]["text"] for _, _, body in pool.map(ask, prompts)]
            self.assertEqual(answers, alone)

    def test_a_stream_of_each_of_many_clients_is_its_own(self):
        with Server() as server:
            prompts = [f"Prompt {number}" for number in range(100)]
            alone = [server.text(prompt=prompt, max_tokens=40) for prompt in prompts]
            streams = [server.open_stream(prompt=prompt, max_tokens=40) for prompt in prompts]
            self.assertEqual([streamed_text(read_all(stream)) for stream in streams], alone)


class Logs(unittest.TestCase):
    def test_no_text_no_key_and_no_control_byte_reaches_the_log(self):
        with Server("--api-key", "kkSECRETkk") as server:
            key = {"Authorization": "Bearer kkSECRETkk"}
            bodies = [completion(prompt="ppSECRETpp"), completion(prompt="ppSECRETpp", model="mm\x1b[31m\nFAKE LINE")]
            bodies += [{"prompt": "ppSECRETpp", "max_tokens": -1}, {"prompt": ["ppSECRETpp"], "ppSECRETpp": 1}]
            bodies += [{"messages": [{"role": "user", "content": "ppSECRETpp"}]}, b'{"prompt": "ppSECRETpp']
            for body in bodies:
                for path in ["/v1/completions", "/v1/chat/completions", "/generate", "/tokenize", "/a%0AFAKE%1B[31m"]:
                    server.post(path, body, headers={**key, "X-Request-Id": "a\tb"})
                    server.post(path, body, headers={"Authorization": "Bearer wwSECRETww"})
            log = server.log_path.read_bytes()
            self.assertIn(b"POST /v1/completions", log)
            self.assertNotIn(b"SECRET", log)
            self.assertEqual([byte for byte in log if byte < 32 and byte != 10], [])
            self.assertNotIn(b"\nFAKE", log)


if __name__ == "__main__":
    unittest.main()
