"""Cargo goes by the times of files, and in a fresh clone every file is new. This gives files that are as they were at the
last run the times that they had then, so that only what has changed is built again.

    python3 scripts/file_times.py begin RECORD TARGET_FOLDER...     before the first build
    python3 scripts/file_times.py end RECORD                        after the last one

RECORD keeps the hash and the time of every tracked file, and of every folder's list of tracked entries. What differs from
it is given the present time, later than all builds: so a time stands for one content, and what was built after it was
built from that content. That holds only for builds between `begin` and `end`. Where one of the folders has been built
into since then (by hand, or by a run that was killed), the record is not used, and a new one is begun only if all files
are younger than all builds, as in a fresh clone. Otherwise nothing is changed and nothing kept: cargo does what it always
does. Deleting the record is always safe.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time


def contents():
    """A hash for every tracked file and for the names in every folder that has one."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout.decode()
    found, folders = {}, {}
    for path in filter(None, listed.split("\0")):
        if os.path.isfile(path) and not os.path.islink(path):
            found[path] = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
        while path:
            folder = os.path.dirname(path)
            folders.setdefault(folder or ".", set()).add(path)
            path = folder
    for folder, entries in folders.items():
        found[folder] = hashlib.sha256("\0".join(sorted(entries)).encode()).hexdigest()
    return found


def last_build(targets):
    """When cargo last began to compile something in these folders, in nanoseconds."""
    stamps = (
        stamp
        for target in targets
        for pattern in ("*/.fingerprint/*/invoked.timestamp", "*/*/.fingerprint/*/invoked.timestamp")
        for stamp in pathlib.Path(target).glob(pattern)
    )
    return max((stamp.stat().st_mtime_ns for stamp in stamps), default=0)


def begin(record, targets):
    built = last_build(targets)
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = {"ended": 0, "files": {}}
    # Without `end` it is good for nothing.
    record.unlink(missing_ok=True)
    try:
        found = contents()
    except (OSError, subprocess.CalledProcessError):
        print("this is no git repository: times of files stay as they are")
        return
    if built < known["ended"]:
        now = time.time_ns()
        files = {path: (digest, now) for path, digest in found.items()}
        files |= {path: tuple(entry) for path, entry in known["files"].items() if found.get(path) == entry[0]}
        changed = sum(when == now for _, when in files.values())
        print(f"{changed} of {len(files)} files and folders have changed since the last run")
    elif min(os.stat(path).st_mtime_ns for path in found) > built:
        files = {path: (digest, os.stat(path).st_mtime_ns) for path, digest in found.items()}
        print("what is built here is older than all files")
    else:
        print("others have built here since the last run: times of files stay as they are")
        return
    # Files first: a folder's own time is not changed by it.
    for path, (_, when) in files.items():
        os.utime(path, ns=(when, when))
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"ended": 0, "files": files}))


def end(record):
    if not record.exists():
        return
    known = json.loads(record.read_text())
    # Whoever changes a file during the run may have had it built before or after that.
    kept = {path: entry for path, entry in known["files"].items() if os.path.exists(path) and os.stat(path).st_mtime_ns == entry[1]}
    # Through another file, so that a record is whole or not there.
    whole = record.with_suffix(".new")
    whole.write_text(json.dumps({"ended": time.time_ns(), "files": kept}))
    whole.replace(record)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["begin", record, *targets] if targets:
            begin(pathlib.Path(record), targets)
        case ["end", record]:
            end(pathlib.Path(record))
        case _:
            sys.exit(__doc__)
