"""Runs the tests of the real process, several at once: they mostly wait.

    python3 tests/real_server/run.py path/to/firebrick [test_module or test_module.Class ...]

The binary must be a debug build for the faults that are planted.
"""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
AT_ONCE = 4
SECONDS_MAX = 300


def tests(names):
    """`module.Class.test` for every test, those that wait longest first."""
    found = []
    for path in sorted(HERE.glob("test_*.py")):
        group = None
        for line in path.read_text().splitlines():
            if named := re.match(r"class (\w+)\(unittest", line):
                group = named[1]
            elif named := re.match(r"    def (test_\w+)\(", line):
                found.append(f"{path.stem}.{group}.{named[1]}")
    wanted = [name for name in found if not names or any(name.startswith(start) for start in names)]
    slow = ("slowloris", "half_a_request", "half_open", "mixed_batch", "templates_that", "faulty_transfers", "one_wrong_bit")
    return sorted(wanted, key=lambda name: not any(word in name for word in slow))


def run(name, binary):
    begun = time.monotonic()
    environment = {**os.environ, "FIREBRICK": binary, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore::ResourceWarning", "-m", "unittest", name],
            cwd=HERE, env=environment, capture_output=True, timeout=SECONDS_MAX,
        )  # fmt: skip
        output, passed = (done.stdout + done.stderr).decode(errors="replace"), done.returncode == 0
    except subprocess.TimeoutExpired as expired:
        output, passed = f"not done after {SECONDS_MAX} s: {expired.stderr or b''!r}", False
    skipped = "skipped=" in output
    return name, passed, skipped, output, time.monotonic() - begun


def main():
    binary = os.path.abspath(sys.argv[1])
    counts = {"ok": 0, "FAILED": 0, "skipped": 0}
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(run, name, binary) for name in tests(sys.argv[2:])]
        for future in concurrent.futures.as_completed(futures):
            name, passed, skipped, output, seconds = future.result()
            verdict = "skipped" if passed and skipped else "ok" if passed else "FAILED"
            counts[verdict] += 1
            print(f"{verdict:8} {seconds:6.1f} s  {name}", flush=True)
            if verdict != "ok":
                print(output)
    print(f"real process: {counts['ok']} passed, {counts['FAILED']} failed, {counts['skipped']} skipped")
    return 1 if counts["FAILED"] or not counts["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
