"""All services under traffic for an hour, and all that befalls them: is anything lost that was promised?

usage: soak.py [--minutes N] [--seed N] [--json] [bridge | fw | freeze | subnet | tor | wan ...]

Each service has a network of its own, with TCP connections through it that last as long as the soak;
vtl-tor has short ones. One fault after another befalls each: SIGKILL, an interface set down, or deleted and
created again, a full disk, SIGHUP, a clock that steps, clients of the control socket that hang; a VM that is
away, a path that is cut. After each fault all connections must carry again, byte for byte. Nothing may pass
that the rules deny, and nothing of a guarded interface may reach the host's stack, also while no service
runs. No service's resident memory may grow. Exit status 1: a promise was broken.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.netns import Lab
from lab.soak.cell import Cell
from lab.soak.cells import CELLS

GROWTH_MAX_KIB = 12 << 10
"""Growth of the anonymous memory of a service that is allowed after its first half minute: the buffers of two
links, of 4 MiB each, which bursts fill, and half as much again."""
CALM_S = 45.0
"""How long no fault befalls a cell at the end, so that growth is seen in one life of the service, too."""


def live(cell: Cell, until: float) -> None:
    """Let faults befall a cell until a time, and leave it alone for a while."""
    while not cell.broken and time.monotonic() < until - CALM_S:
        names = list(cell.faults)
        cell.rng.shuffle(names)
        for name in names:
            if time.monotonic() < until - CALM_S and not cell.broken:
                cell.befall(name)
                pause(cell, cell.rng.uniform(1.0, 8.0))
    while not cell.broken and time.monotonic() < until:
        pause(cell, 1.0)


def pause(cell: Cell, seconds: float) -> None:
    """Let a cell be, and look at its memory."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.5)
        cell.measure()


def verdict(cell: Cell) -> dict[str, object]:
    """Return what was seen of a cell."""
    if not cell.broken:
        try:
            cell.recover("all faults")
        except Exception as e:
            cell.broken.append(str(e))
    if leaked := cell.leaked():
        cell.broken.append(f"{leaked} packets got where they must not")
    if cell.growth_kib > GROWTH_MAX_KIB:
        cell.broken.append(f"resident memory grew by {cell.growth_kib} KiB")
    return {
        "service": cell.service,
        "faults": cell.befell.total(),
        **{f"fault: {name}": cell.befell[name] for name in cell.faults},
        "octets": sum(flow.octets for flow in cell.flows) + getattr(cell, "echoed", 0),
        "slowest_recovery_s": round(cell.slowest_s, 1),
        "leaked": leaked,
        "resident_kib": cell.base_kib,
        "grown_kib": cell.growth_kib,
        "broken": cell.broken,
    }


def shim(directory: Path) -> Path:
    """Build the library that steps a clock."""
    source, library = Path(__file__).resolve().parent.parent / "lab/soak/clock.c", directory / "clock.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def main() -> int:
    """Run, print a line for each service, and return the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("service", nargs="*", choices=[[], *CELLS], default=[])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab() as lab:
        directory = Path(place)
        directory.chmod(0o755)
        library = shim(directory)
        cells = []
        for number, name in enumerate(asked.service or CELLS):
            clock = directory / f"{name}.clock"
            clock.write_bytes(bytes(8))
            cells.append(CELLS[name](lab, Random(asked.seed * 1000 + number), (library, clock)))
        end = time.monotonic() + asked.minutes * 60
        threads = [threading.Thread(target=live, args=(cell, end)) for cell in cells]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = [verdict(cell) for cell in cells]
        for one in seen:
            line = (
                json.dumps(one) if asked.json else ", ".join(f"{key} {value}" for key, value in one.items())
            )
            print(line, flush=True)
    return int(any(one["broken"] for one in seen))


if __name__ == "__main__":
    sys.exit(main())
