"""The guest's root: busybox, an init, some kernel modules and the programs asked for, in one archive."""

import hashlib
import logging
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from lab.cache import WORK, Kernel, cache_dir, locked
from lab.errors import LabError

log = logging.getLogger(__name__)

MODULES = ("virtio_pci", "virtio_net", "virtio_console", "8021q", "af_packet")
INIT, DHCP = (Path(__file__).with_name(name) for name in ("init.sh", "udhcpc.sh"))
KEEP_S = 7 * 86400.0
MODINFO = re.compile(rb"\0(depends|alias)=([^\0]*)")


def initramfs(kernel: Kernel, extra: Iterable[str] = (), modules: Iterable[str] = ()) -> Path:
    """Return the archive, made at the first call and kept for the next.

    extra: programs of this machine, which come with the shared libraries that they need.
    modules: kernel modules for the guest, besides MODULES; the guest loads them on demand or by modprobe.
    """
    if (busybox := shutil.which("busybox")) is None:
        raise LabError("guest: no busybox here; install Debian's busybox-static")
    found = _modules(kernel, [*MODULES, *modules])
    files = {Path("/bin/busybox"): Path(busybox), Path("/init"): INIT}
    files[Path("/etc/udhcpc/default.script")] = DHCP
    for program in extra:
        files[Path(program)] = Path(program)
        files.update((library, library) for library in _libraries(program))
    inputs = [*files.values(), *found.values()]
    states = [(str(path), (state := path.stat()).st_size, state.st_mtime_ns) for path in inputs]
    key = hashlib.sha256(repr((states, Path(__file__).read_text())).encode()).hexdigest()[:16]
    cache = cache_dir()
    archive = cache / f"initramfs-{key}"
    with locked(cache):
        if not archive.exists():
            _prune(cache)
            _build(archive, kernel.modules.name, files, found)
        os.utime(archive)
    return archive


def _prune(cache: Path) -> None:
    """Remove the archives that nobody has used for long."""
    for archive in cache.glob("initramfs-*"):
        if archive.stat().st_mtime < time.time() - KEEP_S:
            archive.unlink()


def _libraries(program: str) -> list[Path]:
    """Return the shared libraries, and the loader, that a program needs; none for a static one."""
    ldd = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    if "not found" in ldd.stdout or not Path(program).exists():
        raise LabError(f"guest: {program}: it or its libraries are missing: {ldd.stdout.strip()}")
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", ldd.stdout)]


def _modules(kernel: Kernel, names: Iterable[str]) -> dict[str, Path]:
    """Return the modules' files by name, dependencies first; what is built in is left out."""
    files = {_name(path): path for path in kernel.modules.rglob("*.ko*")}
    builtin = (kernel.modules / "modules.builtin").read_text().split()
    known = {_name(Path(line)) for line in builtin}
    found: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in known or name in found:
            return
        if name not in files:
            raise LabError(f"guest: the kernel {kernel.modules.name} has no module {name}")
        for needed in _modinfo(files[name], b"depends"):
            add(needed)
        found[name] = files[name]

    for name in names:
        add(name.replace("-", "_"))
    return found


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _octets(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _modinfo(path: Path, field: bytes) -> list[str]:
    """Return what a module says of itself in its .modinfo section. There is no modinfo(8) to rely on."""
    values = [value for name, value in MODINFO.findall(b"\0" + _octets(path)) if name == field]
    return [word.replace("-", "_") for value in values for word in value.decode().split(",") if word]


def _build(archive: Path, version: str, files: dict[Path, Path], modules: dict[str, Path]) -> None:
    log.info("guest: making %s", archive)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=WORK) as name:
        root = Path(name, "root")
        root.mkdir()
        for directory in "dev", "proc", "sys", "tmp", "bin", "sbin", "etc", "root", "run":
            (root / directory).mkdir()
        os.mknod(root / "dev/console", stat.S_IFCHR | 0o600, os.makedev(5, 1))
        for target, source in files.items():
            place = root / target.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
            place.chmod(0o755)
        for applet in subprocess.check_output([files[Path("/bin/busybox")], "--list"], text=True).split():
            if not (root / "bin" / applet).exists():
                (root / "bin" / applet).symlink_to("busybox")
        (root / "sbin/modprobe").symlink_to("../bin/busybox")  # the kernel looks for it here
        (root / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\nnobody::65534:65534::/:/bin/sh\n")
        (root / "etc/group").write_text("root::0:\nnogroup::65534:\n")
        _install_modules(root / "lib/modules" / version, modules)
        made = Path(name, "archive")
        with made.open("wb") as out:
            names = "\0".join(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
            command = ["cpio", "--quiet", "--null", "-o", "-H", "newc"]
            subprocess.run(command, cwd=root, input=names.encode(), stdout=out, check=True)
        made.rename(archive)


def _install_modules(directory: Path, modules: dict[str, Path]) -> None:
    """Copy modules, with the two lists that busybox modprobe reads, as depmod(8) would write them."""
    directory.mkdir(parents=True)
    needs, aliases = [], []
    for name, path in modules.items():
        (directory / f"{name}.ko").write_bytes(_octets(path))
        depends = _closure(name, modules)
        needs.append(f"{name}.ko: {' '.join(f'{needed}.ko' for needed in depends)}\n")
        aliases += [f"alias {alias} {name}\n" for alias in _modinfo(path, b"alias")]
    (directory / "modules.dep").write_text("".join(needs))
    (directory / "modules.alias").write_text("".join(aliases))


def _closure(name: str, modules: dict[str, Path]) -> list[str]:
    """Return all that a module needs in the reverse of the order to load it in, as modprobe expects it."""
    found = {name}
    for other in reversed(modules):  # what needs comes after what is needed
        if other in found:
            found.update(_modinfo(modules[other], b"depends"))
    return [other for other in reversed(modules) if other in found - {name}]
