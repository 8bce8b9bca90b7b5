#!/usr/bin/env python3
"""Firebrick on the CPU against PyTorch transformers in float32, side by side.

Four figures of each, in alternating rounds, and the ratio of their medians:
  decode_one     tokens per second of one stream after its first token (37-token prompt, 128 new)
  total_one      tokens per second of the same request with its prefill
  total_eight    tokens per second of eight such requests: Firebrick gets eight at once, PyTorch a static batch
  prefill        prompt tokens per second until the first token (512-token prompt)
Prompts are new random ids each time, so that no prefix cache helps.

    cpu_vs_torch.py                                      PyTorch alone
    cpu_vs_torch.py --url http://127.0.0.1:8000          both, alternating
    cpu_vs_torch.py --firebrick-json FIGURES.json        PyTorch against figures taken elsewhere
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS, NEW_TOKENS, LONG_PROMPT_TOKENS, STREAMS = 37, 128, 512, 8
ORDINARY_IDS = range(1000, 40000)  # of SmolLM2's vocabulary: words and parts of words
FIGURES = ("decode_one", "total_one", "total_eight", "prefill")


def random_prompt(length, *seed):
    generator = random.Random(repr(seed))
    return [generator.choice(ORDINARY_IDS) for _ in range(length)]


class Torch:
    name = "torch"

    def __init__(self, model_folder, threads):
        import torch
        import transformers
        self.torch, self.transformers = torch, transformers
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        if model_folder:
            self.model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
        else:
            sys.path.insert(0, str(ROOT / "crates/xtask/fixtures"))
            import gguf_model
            path = subprocess.run([ROOT / "scripts/fetch-models.sh", "smollm2"], check=True, capture_output=True, text=True)
            self.model = gguf_model.load(path.stdout.strip(), attention="sdpa")
        self.model.generation_config.eos_token_id = None  # Always all new tokens.

    def generate(self, prompts, new_tokens):
        """Seconds after the start at which each token was ready, for a batch of prompts of one length."""
        times = []

        def clock(ids, _scores, **_):
            times.append(time.perf_counter() - start)
            return self.torch.zeros(ids.shape[0], dtype=self.torch.bool)

        ids = self.torch.tensor(prompts)
        start = time.perf_counter()
        self.model.generate(ids, attention_mask=self.torch.ones_like(ids), do_sample=False, use_cache=True, pad_token_id=0,
                            max_new_tokens=new_tokens, stopping_criteria=self.transformers.StoppingCriteriaList([clock]))
        assert len(times) == new_tokens
        return times

    def one(self, prompt, new_tokens):
        times = self.generate([prompt], new_tokens)
        return times[0], times[-1]

    def many(self, prompts, new_tokens):
        return self.generate(prompts, new_tokens)[-1]


class Firebrick:
    name = "firebrick"

    def __init__(self, url, key):
        self.url, self.headers = url.rstrip("/"), {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/v1/models", headers=self.headers)) as answer:
            self.model = json.load(answer)["data"][0]["id"]

    def one(self, prompt, new_tokens):
        """Seconds to the first and to the last token of a streamed completion."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), self.headers)
        start, times, usage = time.perf_counter(), [], None
        with urllib.request.urlopen(request, timeout=600) as answer:
            for line in answer:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    continue
                event = json.loads(line[len(b"data: "):])
                if "error" in event:
                    raise SystemExit(f"Firebrick: {event['error']}")
                if event["choices"]:
                    times.append(time.perf_counter() - start)
                usage = event.get("usage") or usage
        if not usage or usage["completion_tokens"] != new_tokens or usage["prompt_tokens"] != len(prompt):
            raise SystemExit(f"Firebrick: {len(prompt)} + {new_tokens} tokens were asked for, usage is {usage}")
        return times[0], times[-1]

    def many(self, prompts, new_tokens):
        results, start = [], time.perf_counter()
        threads = [threading.Thread(target=lambda prompt=prompt: results.append(self.one(prompt, new_tokens)))
                   for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(results) != len(prompts):
            raise SystemExit(f"Firebrick: {len(prompts) - len(results)} of {len(prompts)} requests failed")
        return time.perf_counter() - start


def measure(engine, round_number):
    first, last = engine.one(random_prompt(PROMPT_TOKENS, round_number, "one"), NEW_TOKENS)
    eight = engine.many([random_prompt(PROMPT_TOKENS, round_number, stream) for stream in range(STREAMS)], NEW_TOKENS)
    long_first, _ = engine.one(random_prompt(LONG_PROMPT_TOKENS, round_number, "long"), 1)
    return {"decode_one": (NEW_TOKENS - 1) / (last - first), "total_one": NEW_TOKENS / last,
            "total_eight": STREAMS * NEW_TOKENS / eight, "prefill": LONG_PROMPT_TOKENS / long_first}


def medians(rounds):
    return {figure: statistics.median(values[figure] for values in rounds) for figure in FIGURES}


def ratios(torch, firebrick):
    return {"decode_one": firebrick["decode_one"] / torch["decode_one"],
            "total_eight_over_torch_batch": firebrick["total_eight"] / torch["total_eight"],
            "total_eight_over_torch_one": firebrick["total_eight"] / torch["total_one"],
            "prefill": firebrick["prefill"] / torch["prefill"]}


def print_table(result):
    names = [name for name in ("torch", "firebrick") if name in result]
    print(f"{'tokens per second':20}" + "".join(f"{name:>22}" for name in names))
    for figure in FIGURES:
        cells = []
        for name in names:
            values = [values[figure] for values in result["rounds"].get(name, [])] or [result[name][figure]]
            cells.append(f"{result[name][figure]:9.1f} ({min(values):.1f}-{max(values):.1f})")
        print(f"{figure:20}" + "".join(f"{cell:>22}" for cell in cells))
    for name, ratio in result.get("ratios", {}).items():
        print(f"Firebrick / torch    {name:30} {ratio:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", help="base URL of a running Firebrick that serves SmolLM2-135M-Instruct")
    source.add_argument("--firebrick-json", metavar="FILE", help=f"figures instead: an object with {', '.join(FIGURES)}")
    parser.add_argument("--key", default=os.environ.get("FIREBRICK_API_KEY"), help="API key (default: $FIREBRICK_API_KEY)")
    parser.add_argument("--model", metavar="FOLDER", help="transformers folder for PyTorch (default: SmolLM2 from GGUF)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="PyTorch threads (default: all cores)")
    parser.add_argument("--json", metavar="FILE", help="also write the result here")
    arguments = parser.parse_args()

    engines = [Torch(arguments.model, arguments.threads)]
    if arguments.url:
        engines.append(Firebrick(arguments.url, arguments.key))
    rounds = {engine.name: [] for engine in engines}
    for round_number in range(arguments.rounds + 1):  # Round 0 warms up: caches, autotuning.
        for engine in engines:
            figures = measure(engine, round_number)
            print(f"round {round_number} {engine.name:10}" + " ".join(f"{k} {v:.1f}" for k, v in figures.items()), file=sys.stderr)
            if round_number:
                rounds[engine.name].append(figures)
    result = {"threads": arguments.threads, "torch_version": engines[0].torch.__version__,
              "transformers_version": engines[0].transformers.__version__, "rounds": rounds}
    result |= {name: medians(values) for name, values in rounds.items()}
    if arguments.firebrick_json:
        result["firebrick"] = json.loads(Path(arguments.firebrick_json).read_text())
    if "firebrick" in result:
        result["ratios"] = ratios(result["torch"], result["firebrick"])
    print_table(result)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
