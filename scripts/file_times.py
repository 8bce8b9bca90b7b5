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

What is built knows the path of its repository (tests find their fixtures by it), and cargo does not see that the path has
changed: after a run in another place every file is new.

Each package of vendor/ has a record of its own, because all of Burn is built again with it, and nobody else reads its
files. One that cargo takes for built is recorded as it is.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

STAMPS = ("*/.fingerprint/*/invoked.timestamp", "*/*/.fingerprint/*/invoked.timestamp")


def group_of(path):
    """The package of vendor/ that a file or folder belongs to; `` for all others."""
    parts = pathlib.PurePath(path).parts
    return parts[1] if len(parts) > 1 and parts[0] == "vendor" else ""


def contents():
    """By group, a hash for every tracked file and for the names in every folder that has one."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout.decode()
    hashes, folders = {}, {}
    for path in filter(None, listed.split("\0")):
        if os.path.isfile(path) and not os.path.islink(path):
            hashes[path] = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
        while path:
            folder = os.path.dirname(path)
            folders.setdefault(folder or ".", set()).add(path)
            path = folder
    for folder, entries in folders.items():
        hashes[folder] = hashlib.sha256("\0".join(sorted(entries)).encode()).hexdigest()
    groups = {}
    for path, digest in hashes.items():
        groups.setdefault(group_of(path), {})[path] = digest
    return groups


def last_builds(targets, groups):
    """By group, when cargo last began to compile something of it in these folders, in nanoseconds."""
    latest = dict.fromkeys(groups, 0)
    for stamp in (stamp for target in targets for pattern in STAMPS for stamp in pathlib.Path(target).glob(pattern)):
        package = stamp.parent.name.rpartition("-")[0]
        group = package if package in groups else ""
        latest[group] = max(latest[group], stamp.stat().st_mtime_ns)
    return latest


def times(found, built, known, group):
    """Hash and time of every file of a group; None where cargo is left alone."""
    ages = {path: os.stat(path).st_mtime_ns for path in found}
    what = f"package {group}" if group else "repository"
    if known and not group and known.get("root") != os.getcwd():
        print(f"{what}: the last run was in another folder")
        return {path: (digest, time.time_ns()) for path, digest in found.items()}
    if known and built < known["ended"]:
        now = time.time_ns()
        kept = {path: when for path, (digest, when) in known["files"].items() if found.get(path) == digest}
        print(f"{what}: {len(found) - len(kept)} of {len(found)} files and folders have changed since the last run")
        ages = {path: kept.get(path, now) for path in found}
    elif min(ages.values()) > built:
        print(f"{what}: all files are younger than what is built")
    elif not (group and max(ages.values()) < built):
        print(f"{what}: others have built it since the last run, so that times stay as they are")
        return None
    return {path: (digest, ages[path]) for path, digest in found.items()}


def begin(record, targets):
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = {}
    # Without `end` it is good for nothing.
    record.unlink(missing_ok=True)
    try:
        groups = contents()
    except (OSError, subprocess.CalledProcessError):
        print("this is no git repository: times of files stay as they are")
        return
    built = last_builds(targets, groups)
    begun = {}
    for group, found in groups.items():
        files = times(found, built[group], known.get(group), group)
        if files is None:
            continue
        for path, (_, when) in files.items():
            os.utime(path, ns=(when, when))
        begun[group] = {"ended": 0, "root": os.getcwd(), "files": files}
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(begun))


def end(record):
    if not record.exists():
        return
    known = json.loads(record.read_text())
    for group in known.values():
        # Whoever changes a file during the run may have had it built before or after that.
        is_as_begun = lambda path, when: os.path.exists(path) and os.stat(path).st_mtime_ns == when
        group["files"] = {path: entry for path, entry in group["files"].items() if is_as_begun(path, entry[1])}
        group["ended"] = time.time_ns()
    # Through another file, so that a record is whole or not there.
    whole = record.with_suffix(".new")
    whole.write_text(json.dumps(known))
    whole.replace(record)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["begin", record, *targets] if targets:
            begin(pathlib.Path(record), targets)
        case ["end", record]:
            end(pathlib.Path(record))
        case _:
            sys.exit(__doc__)
