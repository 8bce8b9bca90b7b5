# python examples/adaptive_batcher.py --url http://127.0.0.1:8000
"""Collects prompts for up to 100 ms or 32 of them and sends them as one request.

With Firebrick this only saves connections: the engine batches continuously, so that separate requests run together
anyway. Needs nothing but Python.
"""
import argparse
import json
import queue
import threading
import time
import urllib.request
from concurrent.futures import Future


class AdaptiveBatcher:
    def __init__(self, url, max_batch_size=32, max_wait_ms=100):
        self.url, self.max_batch_size, self.max_wait = url, max_batch_size, max_wait_ms / 1000
        self.waiting = queue.Queue()
        threading.Thread(target=self.run, daemon=True).start()

    def submit(self, prompt):
        future = Future()
        self.waiting.put((prompt, future))
        return future

    def run(self):
        while True:
            batch = [self.waiting.get()]
            deadline = time.monotonic() + self.max_wait
            while len(batch) < self.max_batch_size:
                try:
                    batch.append(self.waiting.get(timeout=max(0, deadline - time.monotonic())))
                except queue.Empty:
                    break
            threading.Thread(target=self.send, args=(batch,)).start()

    def send(self, batch):
        body = json.dumps({"prompts": [prompt for prompt, _ in batch], "max_tokens": 16, "temperature": 0}).encode()
        request = urllib.request.Request(f"{self.url}/batch_generate", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as response:
                results = json.load(response)["results"]
            for (_, future), result in zip(batch, results):
                future.set_result(result["text"])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    batcher = AdaptiveBatcher(parser.parse_args().url)
    for future in [batcher.submit(f"{n} plus {n} is") for n in range(1, 9)]:
        print(future.result().strip().splitlines()[:1])
