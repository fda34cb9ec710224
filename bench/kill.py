"""Kill a service at random moments while its guest sends all it can, and count the frames that get out.

usage: kill.py [--moments N] [--seed N] [--json] [tor | fw ...]

Each service is started by its command, and killed (SIGKILL) at a moment between the first instant of its
process and a while after it is ready. Observers are the far end of the uplink, which hears every frame, and
the host's stack: its sockets on all addresses, and its counters of packets received. The guard is raised
before the first start. After it is cleared, the same observers must hear the guest. Exit status 1: a frame of
the guest got out.
"""

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.failclosed import Moments, Scene

SERVICES = ("tor", "fw")


def soak(service: str, count: int, seed: int) -> dict[str, object]:
    """Return what was seen in so many moments of a service."""
    began = time.monotonic()
    with closing(Scene(service)) as scene:
        moments = Moments(scene, Random(seed))
        for number in range(1, count + 1):
            moments.once()
            if number % 100 == 0:
                print(f"vtl-{service}: {number}, {len(moments.found)} got out", file=sys.stderr, flush=True)
        moments.end()
        return {
            "service": f"vtl-{service}",
            "moments": moments.moments,
            "killed_before_ready": moments.moments - moments.ready,
            "frames_sent": scene.sent,
            "frames_out": len(moments.found),
            "what": dict(Counter(moments.found).most_common(8)),
            "heard_without_guard": moments.heard_after,
            "took_s": round(time.monotonic() - began, 1),
        }


def main() -> int:
    """Run, print a line for each service, and return the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--moments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("service", nargs="*", choices=[[], *SERVICES], default=[])
    asked = parser.parse_args()
    status = 0
    for service in asked.service or SERVICES:
        seen = soak(service, asked.moments, asked.seed)
        if asked.json:
            print(json.dumps(seen), flush=True)
        else:
            print(", ".join(f"{key} {value}" for key, value in seen.items()), flush=True)
        status |= bool(seen["frames_out"]) or not seen["heard_without_guard"]
    return status


if __name__ == "__main__":
    sys.exit(main())
