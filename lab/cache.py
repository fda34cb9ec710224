"""The kernel of guests: a Debian cloud kernel, downloaded once and never installed. And what root runs in it.

Kept under $VTL_CACHE, or .cache of the repository. Elsewhere than on Debian, VTL_GUEST_KERNEL names a
kernel (vmlinuz) and VTL_GUEST_MODULES the directory with its modules (lib/modules/VERSION).
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

log = logging.getLogger(__name__)

METAPACKAGE = "linux-image-cloud-amd64"
WORK = "work-"  # how the names of directories begin that nobody needs after a crash
PROVIDE = "provide VTL_GUEST_KERNEL=/path/vmlinuz and VTL_GUEST_MODULES=/path/lib/modules/VERSION"


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot. modules: its lib/modules/VERSION, whose name is the version."""

    image: Path
    modules: Path


def cache_dir() -> Path:
    """Return the directory for what is worth keeping between runs; it exists."""
    chosen = os.environ.get("VTL_CACHE")
    path = Path(chosen) if chosen else Path(__file__).resolve().parents[1] / ".cache"
    path = path / "guest"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a cache, and sweep what one left that was killed in here."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for left in path.glob(f"{WORK}*"):
            shutil.rmtree(left)
        yield
    finally:
        os.close(fd)


def frames_program() -> Path:
    """Return frames.c compiled, static, so that it runs in a guest without libraries."""
    source = Path(__file__).with_name("frames.c")
    cache = cache_dir()
    program = cache / f"frames-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    with locked(cache):
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix=WORK) as name:
                made = Path(name, "frames")
                command = ["gcc", "-Os", "-s", "-static", "-o", made, source]
                built = subprocess.run(command, capture_output=True, text=True, check=False)
                if built.returncode:
                    raise LabError(f"guest: {source.name}: {built.stderr}; install gcc and libc6-dev")
                made.rename(program)
    return program


def guest_kernel() -> Kernel:
    """Return the kernel for guests: the one that the environment names, the cached, or a fresh download."""
    image, modules = os.environ.get("VTL_GUEST_KERNEL"), os.environ.get("VTL_GUEST_MODULES")
    if image and modules:
        for needed in Path(image), Path(modules, "modules.builtin"):
            if not needed.is_file():
                raise LabError(f"guest kernel: {needed}: no such file; {PROVIDE}")
        return Kernel(Path(image), Path(modules))
    if image or modules:
        raise LabError(f"guest kernel: only one half of it is given; {PROVIDE}")
    cache = cache_dir()
    with locked(cache):
        kernel = cache / "kernel"
        if not kernel.exists():
            _download(kernel)
    return Kernel(kernel / "vmlinuz", next((kernel / "modules").iterdir()))


def _download(kernel: Path) -> None:
    """Fill `kernel` with vmlinuz and modules/VERSION; it appears complete or not at all."""
    for tool in "apt-get", "apt-cache", "dpkg-deb":
        if shutil.which(tool) is None:
            raise LabError(f"guest kernel: no {tool} here to download one with; {PROVIDE}")
    package = _package() or (_run(None, "apt-get", "update", "-qq") and _package())
    if not package:
        raise LabError(f"guest kernel: apt knows no {METAPACKAGE}; {PROVIDE}")
    log.info("guest kernel: downloading %s", package)
    with tempfile.TemporaryDirectory(dir=kernel.parent, prefix=WORK) as name:
        work = Path(name)
        fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
        try:
            _run(work, *fetch)
        except LabError:  # the lists are older than the archive
            _run(None, "apt-get", "update", "-qq")
            _run(work, *fetch)
        _run(work, "dpkg-deb", "-x", str(next(work.glob("*.deb"))), "files")
        done = work / "kernel"
        (done / "modules").mkdir(parents=True)
        next((work / "files/boot").glob("vmlinuz-*")).rename(done / "vmlinuz")
        root = next(root for root in (work / "files/lib", work / "files/usr/lib") if root.is_dir())
        version = next((root / "modules").iterdir())
        version.rename(done / "modules" / version.name)
        done.rename(kernel)


def _package() -> str | None:
    """Return the name of the package that METAPACKAGE stands for at present."""
    try:
        listing = _run(None, "apt-cache", "depends", METAPACKAGE)
    except LabError:
        return None
    names = [line.split()[-1] for line in listing.splitlines() if "Depends: linux-image" in line]
    return names[0] if names else None


def _run(cwd: Path | None, *command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"guest kernel: {' '.join(command)}: {done.stderr.strip()}; {PROVIDE}")
    return done.stdout or "\n"
