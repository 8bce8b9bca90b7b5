"""Downloads of the real process from a hub that lies, breaks off and is slow, onto disks that are full or read-only."""

import concurrent.futures
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time
import unittest

import tiny_model
from fake_hub import COMMIT, FakeHub
from server import BINARY, Server, run_to_end, wait_for


def environment(hub, home):
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "ttSECRETtt", "HF_HUB_OFFLINE": ""}


def pull(hub, home, seconds=120):
    return run_to_end("models", "pull", "org/name", environment=environment(hub, home), seconds=seconds)


def stored(home):
    """The files of the model that have their names, with their content."""
    snapshot = pathlib.Path(home) / "hub" / "models--org--name" / "snapshots" / COMMIT
    return {path.name: path.read_bytes() for path in snapshot.iterdir()} if snapshot.is_dir() else {}


def leftovers(home):
    return [path for path in pathlib.Path(home).rglob("*") if path.name.endswith((".part", ".tmp"))]


@contextlib.contextmanager
def small_disk(size, test):
    if os.geteuid() != 0:
        test.skipTest("mounting a small file system needs root")
    with tempfile.TemporaryDirectory() as disk:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
            test.skipTest("a small file system cannot be mounted here")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


class Hub(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="firebrick-hub-")
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.model = tiny_model.write(self.root / "model")
        self.whole = {path.name: path.read_bytes() for path in self.model.iterdir()}

    def assert_refused(self, code, output):
        """One line says why, in an orderly end."""
        self.assertEqual(code, 1, output)
        self.assertEqual(len([line for line in output.splitlines() if line.startswith("error: ")]), 1, output)
        self.assertNotIn("panicked", output)
        self.assertNotIn("SECRET", output)

    def test_faulty_transfers_end_in_whole_files_or_a_clean_error(self):
        seeds = int(os.environ.get("FIREBRICK_HUB_DOWNLOADS", "24"))
        ended = {"whole": 0, "refused": 0}
        transfers = 0

        def download(seed):
            generator = random.Random(seed)
            # From a hub with a bad day to one that never gets anything right.
            badness = [0.2, 0.4, 0.5, 1.0][seed % 4]
            kinds = FakeHub.FAULTS if badness < 1 else ["flip", "429", "503"]
            fault = lambda name, start: generator.choice(kinds) if generator.random() < badness else None
            with FakeHub(self.model, fault) as hub:
                home = self.root / f"home-{seed}"
                code, output = pull(hub, home)
                return code, output, stored(home), hub.transfers

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            for code, output, files, asked in pool.map(download, range(seeds)):
                transfers += asked
                if code == 0:
                    ended["whole"] += 1
                    self.assertEqual(files, self.whole)
                else:
                    ended["refused"] += 1
                    self.assert_refused(code, output)
                    for name, content in files.items():
                        self.assertEqual(content, self.whole[name], "what has a name is whole")
        print(f"{seeds} downloads of {transfers} transfers: {ended}")
        self.assertTrue(all(ended.values()), ended)

    def test_one_wrong_bit_is_found_in_every_file(self):
        def download(wrong):
            with FakeHub(self.model, lambda name, start: "flip" if name == wrong else None) as hub:
                return wrong, self.root / f"flip-{wrong}", *pull(hub, self.root / f"flip-{wrong}")

        # At once, because each is tried again with growing pauses.
        with concurrent.futures.ThreadPoolExecutor(len(self.whole)) as pool:
            for wrong, home, code, output in pool.map(download, self.whole):
                self.assert_refused(code, output)
                self.assertIn(wrong, output)
                self.assertNotIn(wrong, stored(home))
                self.assertEqual(leftovers(home), [], "what is damaged is not kept")

    def test_a_redirect_to_another_host_gets_no_token(self):
        with FakeHub(self.model) as other, FakeHub(self.model, lambda name, start: "away", other.url) as hub:
            code, output = pull(hub, self.root / "home")
            self.assertEqual((code, stored(self.root / "home")), (0, self.whole), output)
            self.assertTrue(all("ttSECRETtt" in headers.get("authorization", headers.get("Authorization", "")) for _, headers in hub.asked))
            self.assertTrue(other.asked)
            self.assertFalse(any("SECRET" in str(headers) for _, headers in other.asked))

    def test_a_hub_that_is_gone_or_stalls_is_told_apart_from_a_missing_model(self):
        with FakeHub(self.model) as hub:
            gone = environment(hub, self.root / "gone")
        code, output = run_to_end("models", "pull", "org/name", environment=gone, seconds=120)
        self.assert_refused(code, output)
        with FakeHub(self.model) as hub:
            code, output = run_to_end("models", "pull", "org/other", environment=environment(hub, self.root / "x"))
            self.assert_refused(code, output)
            self.assertIn("org/other", output)

    def test_kills_during_a_download_are_followed_by_a_clean_restart(self):
        with Server(model=self.model) as sound:
            expected = sound.text(max_tokens=50)
        home, generator = self.root / "home", random.Random(1)
        with FakeHub(self.model, lambda name, start: "stall") as hub:
            for kill in range(8):
                process = subprocess.Popen(
                    [os.path.abspath(BINARY), "models", "pull", "org/name"], stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env={**os.environ, **environment(hub, home)},
                )  # fmt: skip
                asked = hub.transfers
                wait_for(lambda: hub.transfers > asked or process.poll() is not None, "a transfer", 10)
                time.sleep(generator.random() * 0.15)
                process.send_signal(signal.SIGKILL)
                process.wait()
                for name, content in stored(home).items():
                    self.assertEqual(content, self.whole[name], "what has a name is whole")
            self.assertTrue(any(headers.get("range", headers.get("Range")) for _, headers in hub.asked), "nothing was resumed")
            with Server(model="org/name", environment=environment(hub, home)) as server:
                self.assertEqual(server.text(max_tokens=50), expected)
        self.assertEqual(stored(home), self.whole)
        self.assertEqual(leftovers(home), [])

    def test_a_full_disk_refuses_a_download_and_leaves_no_part(self):
        # At every point of the transfer: from a disk without room for the first file to one short of a page.
        total = sum(map(len, self.whole.values()))
        for size in [8, 16, 64, 96, 128, total // 1024 - 4]:
            with self.subTest(size), small_disk(f"{size}k", self) as disk, FakeHub(self.model) as hub:
                code, output = pull(hub, disk)
                self.assert_refused(code, output)
                self.assertRegex(output, "(?i)no space|disk")
                self.assertEqual(leftovers(disk), [])
                for name, content in stored(disk).items():
                    self.assertEqual(content, self.whole[name])

    def test_a_disk_that_cannot_be_written_is_named(self):
        with small_disk("1m", self) as disk, FakeHub(self.model) as hub:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            code, output = pull(hub, disk)
            self.assert_refused(code, output)
            self.assertRegex(output, "(?i)read-only")


if __name__ == "__main__":
    unittest.main()
