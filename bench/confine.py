#!/usr/bin/env python3
"""The cost of the filter of system calls: the time of one call, without and with it.

The call is getppid(2), which does next to nothing. A process without the filter and one with it take turns;
each figure is the least of its rounds, as anything else on the machine only adds.
"""

import argparse
import json
import multiprocessing
import os
import time
from multiprocessing.connection import Connection

from vtl_tools.common.host import confinement, privilege

CALLS = 20_000
ROUNDS = 500


def measure() -> float:
    """Return nanoseconds of a call, with Python's share."""
    began = time.perf_counter()
    for _ in range(CALLS):
        os.getppid()
    return (time.perf_counter() - began) / CALLS * 1e9


def serve(pipe: Connection, *, filtered: bool) -> None:
    """Measure when asked."""
    privilege.keep_only(())
    if filtered:
        confinement.deny_calls()
    while pipe.recv():
        pipe.send(measure())


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    pipes = {}
    for filtered in False, True:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=serve, args=(theirs,), kwargs={"filtered": filtered})
        process.start()
        pipes[filtered] = ours
    least = dict.fromkeys(pipes, float("inf"))
    for _ in range(ROUNDS):
        for filtered, pipe in pipes.items():
            pipe.send(True)
            least[filtered] = min(least[filtered], pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    if as_json:
        print(json.dumps({"unfiltered_ns": round(least[False], 1), "filtered_ns": round(least[True], 1)}))
    else:
        print(f"a system call: {least[False]:.1f} ns, filtered {least[True]:.1f} ns")


if __name__ == "__main__":
    main()
