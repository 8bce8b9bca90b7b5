"""Checks that a client makes of a running server: functions that assert, run one after the other and reported a line each."""

import sys

CHECKS = []


def check(function):
    """Adds a function of a client and a model's name to the checks."""
    CHECKS.append(function)
    return function


def run(usage, connect):
    """Runs all checks with the client that `connect(url, key)` makes; the command line has the URL, the model and the key."""
    if len(sys.argv) < 3:
        sys.exit(usage)
    url, model = sys.argv[1:3]
    client = connect(url, sys.argv[3] if len(sys.argv) > 3 else "none")
    failed = 0
    for function in CHECKS:
        try:
            function(client, model)
            print(f"ok      {function.__name__}")
        except Exception as error:  # one failure must not hide the others
            failed += 1
            print(f"FAILED  {function.__name__}: {type(error).__name__}: {error}")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed")
    sys.exit(1 if failed else 0)
