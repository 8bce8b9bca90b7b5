"""Memory of a real process under what clients can send for ever."""

import http.client
import json
import random
import unittest

from server import Server


class Memory(unittest.TestCase):
    def test_distinct_prompts_fill_caches_that_end(self):
        # Prompts that a tokenizer without words takes as one piece each, just short enough to be remembered.
        generator = random.Random(1)

        def distinct():
            return "".join(chr(generator.randrange(33, 126)) for _ in range(250))

        with Server("--disable-log-requests") as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port)

            def ask(count):
                for _ in range(count):
                    body = json.dumps({"model": "tiny", "prompt": distinct()})
                    connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    self.assertEqual((response.status, json.loads(response.read())["count"]), (200, 250))

            ask(200)
            before = server.rss_kb()
            ask(4500)
            full = server.rss_kb()
            self.assertLess(full - before, 45 << 10)
            ask(4500)
            self.assertLess(server.rss_kb() - full, 4 << 10)
