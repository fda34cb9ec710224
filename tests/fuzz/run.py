"""Fuzz every target, or those that are named: python -m tests.fuzz.run [--seconds N] [--jobs N] [TARGET]...

What is found, what was learned and what libFuzzer said is in .cache/fuzz/TARGET. The exit status is 1 if
anything was found. --keep makes the tree's corpus from what was learned instead, small as it must be.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType, ModuleType
from typing import Any, Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
CACHE: Final = ROOT / ".cache" / "fuzz"
CORPUS: Final = HERE / "corpus"
TARGETS: Final = sorted(path.stem for path in (HERE / "targets").glob("*.py"))

INPUT_S: Final = 30
"""How long one input may take: much, as other processes may have the processor meanwhile."""
MEMORY_MIB: Final = 1024
LENGTH_MAX: Final = 4096
"""Octets of an input that libFuzzer makes up."""
FILES_MAX: Final = 100
OCTETS_MAX: Final = 100 << 10
"""Of one target's corpus in the tree."""

FOUND: Final = "found-"
"""How the names of inputs begin that once found something; they are kept whatever they reach."""


def target(name: str) -> ModuleType:
    """Import a target: one() takes an input, seeds() has some to begin with, WORDS what they are made of."""
    return importlib.import_module(f"tests.fuzz.targets.{name}")


def kept(name: str) -> list[Path]:
    """Return the files of a target's corpus in the tree."""
    return sorted((CORPUS / name).glob("*"))


def fuzz(name: str, seconds: int) -> str:
    """Run libFuzzer on one target; return what it came to in a line. Raises ChildProcessError."""
    place = CACHE / name
    learned, seeds = place / "corpus", place / "seeds"
    for folder in learned, seeds, CORPUS / name:
        folder.mkdir(parents=True, exist_ok=True)
    module = target(name)
    for number, seed in enumerate(module.seeds()):
        (seeds / f"{number:03}").write_bytes(seed)
    words = [re.sub("..", r"\\x\g<0>", word.hex()) for word in getattr(module, "WORDS", ())]
    (place / "words").write_text("".join(f'"{word}"\n' for word in words))
    command = [
        sys.executable, "-m", "tests.fuzz.child", name, f"-max_total_time={seconds}", f"-timeout={INPUT_S}",
        f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={getattr(module, 'LENGTH_MAX', LENGTH_MAX)}",
        f"-artifact_prefix={place}/{FOUND}", "-print_final_stats=1",
        *([f"-dict={place / 'words'}"] if words else []), str(learned), str(CORPUS / name), str(seeds),
    ]  # fmt: skip
    with (place / "log").open("wb") as log, TemporaryDirectory(prefix="vtl-fuzz-") as temporary:
        # The seed: so that an input leads to the same run again.
        env = {**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": temporary}
        status = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
    text = (place / "log").read_text(errors="replace")
    if status:
        raise ChildProcessError(f"{name}: found something: {place / 'log'}\n{_essence(text)}")
    runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    if runs is None or not reached:
        raise ChildProcessError(f"{name}: did not run: {place / 'log'}")
    cov, features, inputs = reached[-1]
    return f"{name}: {runs[1]} inputs in {seconds} s; {cov} edges, {features} features, {inputs} inputs kept"


def _essence(log: str) -> str:
    """Return the part of libFuzzer's words that tells what was found."""
    found = re.search(r"(Uncaught Python exception|ERROR: libFuzzer).*?(?=MS: |stat::|\Z)", log, re.DOTALL)
    return log[-2000:] if found is None else found[0][:6000]


# --- the corpus in the tree


def keep(name: str) -> str:
    """Put into the tree what reaches lines that nothing smaller does, and what once found something."""
    one = target(name).one
    inputs = {path.read_bytes(): path.name for path in _known(name)}
    chosen: dict[str, bytes] = {}
    reached: set[Any] = set()
    octets = 0
    for data in sorted(inputs, key=lambda data: (not inputs[data].startswith(FOUND), len(data), data)):
        fresh = set(_lines(one, data)) - reached
        once = inputs[data].startswith(FOUND)
        if not once and (not fresh or len(chosen) == FILES_MAX or octets + len(data) > OCTETS_MAX):
            continue
        reached |= fresh
        octets += len(data)
        chosen[inputs[data] if once else sha256(data).hexdigest()[:12]] = data
    for path in kept(name):
        path.unlink()
    for file, data in chosen.items():
        (CORPUS / name / file).write_bytes(data)
    return f"{name}: {len(chosen)} files, {octets} octets, {len(reached)} steps from line to line"


def _known(name: str) -> Iterable[Path]:
    learned = (CACHE / name).glob("corpus/*"), (CACHE / name).glob("seeds/*")
    return [*kept(name), *learned[0], *learned[1]]


def _lines(one: Any, data: bytes) -> Iterator[tuple[CodeType, int, int]]:
    """Return which lines of the package are run after which."""
    seen: set[tuple[CodeType, int, int]] = set()
    mine = str(ROOT / "vtl_tools")

    def enter(frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(mine):
            return None
        before = 0

        def step(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal before
            if event == "line":
                seen.add((code, before, frame.f_lineno))
                before = frame.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        one(data)
    finally:
        sys.settrace(None)
    return iter(seen)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Fuzz the doors for foreign octets.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at once (processors)")
    parser.add_argument("--keep", action="store_true", help="make the tree's corpus of what was learned")
    parser.add_argument("target", nargs="*", help=", ".join(TARGETS))
    asked = parser.parse_args()
    names = asked.target or TARGETS
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if asked.keep:
        for name in names:
            print(keep(name), flush=True)
        return 0
    failed = 0
    with ThreadPoolExecutor(asked.jobs) as pool:
        for job in [pool.submit(fuzz, name, asked.seconds) for name in names]:
            try:
                print(job.result(), flush=True)
            except ChildProcessError as e:
                failed = 1
                print(e, file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
