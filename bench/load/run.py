"""All load tools, one after the other: short for CI, or at full length.

    FIREBRICK=path/to/firebrick python3 bench/load/run.py [--full]

Short takes about a minute on two cores; full takes an hour and a quarter, most of it the soak. Ends with an
error when something is left behind, mixed up or lost. Times are printed and not judged: the machine's other work shows
in them.
"""

import sys

import churn
import half_open
import soak
import stalled_readers
import streams

SHORT = [(streams, [300]), (churn, [2000]), (half_open, [1000]), (stalled_readers, [30]), (soak, [15, 30])]
FULL = [(streams, []), (churn, []), (half_open, []), (stalled_readers, []), (soak, [])]

if __name__ == "__main__":
    for tool, arguments in FULL if "--full" in sys.argv else SHORT:
        tool.main(*arguments)
    print("load: 5 passed, 0 failed")
