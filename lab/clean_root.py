"""A minimal Debian of the release of the host, run by systemd in namespaces of its own."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.errors import CommandFailed
from lab.wait import PATIENCE_S, until

_BOOTED = {"systemd-journald.service", "systemd-udevd.service", "systemd-tmpfiles-setup.service"}
"""The parts of a boot that run. Others would set what namespaces share with the host, such as kernel.*."""
_RULES = {"75-net-description.rules", "80-net-setup-link.rules", "99-systemd.rules"}
"""Rules of udev that are about interfaces; others would act on the host's disks."""
_BOOT = """
set -e
cd "$0"
mount --make-rprivate /
mount --bind . .
cd "$0"
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/net dev/pts dev/shm tmp/host
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for name in null zero full random urandom tty net/tun; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
pivot_root . tmp/host
exec chroot . sh -ec 'mount -t proc proc /proc; umount -l /tmp/host; rmdir /tmp/host
    exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target'
"""
_ENVIRONMENT = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "TERM=dumb")


class CleanRoot:
    """A Debian with `packages`, systemd and udev. Needs root and the mirror that apt-get has.

    A command fails with CommandFailed if its exit status is not 0, unless `check` is False.
    """

    def __init__(self, where: Path, packages: Sequence[str]) -> None:
        self.path = where
        self._init = 0
        self._unshare: subprocess.Popen[bytes] | None = None
        self._cgroup = _cgroup2() / f"vtl-lab-{os.getpid()}"
        names = ",".join(("apt", "systemd", "udev", *packages))
        release, mirror = _mirror()
        options = ("--quiet", "--variant=essential", "--dpkgopt=force-unsafe-io", f"--include={names}")
        _run(["mmdebstrap", *options, release, where, mirror])
        for units in "lib/systemd/system", "etc/systemd/system":
            for path in (where / units).glob("*.target.wants/*"):
                if path.name not in _BOOTED:
                    path.unlink()
        (where / "etc/systemd/system/systemd-remount-fs.service").symlink_to("/dev/null")
        for path in (where / "lib/udev/rules.d").iterdir():
            if path.name not in _RULES:
                path.unlink()

    def chroot(self, *command: str | Path, binds: Mapping[Path, str] | None = None) -> str:
        """Run a command, with the host's network, and return its output. binds: host's directories there."""
        mounts = [("-t", "proc", "proc", "/proc"), ("--rbind", "/dev", "/dev")]
        mounts += [("--bind", str(path), there) for path, there in (binds or {}).items()]
        lines = [shlex.join(["mount", *how, f"{self.path}{there}"]) for *how, there in mounts]
        script = "\n".join(["set -e", *lines, 'exec chroot "$0" "$@"'])
        return _run(["unshare", "--mount", "sh", "-c", script, self.path, *_ENVIRONMENT, *command])

    def boot(self) -> None:
        """Have systemd run it, without any network but loopback."""
        self._cgroup.mkdir()
        join = f'echo $$ >"{self._cgroup}/cgroup.procs"; exec unshare "$@"'
        kinds = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")
        command = ["sh", "-c", join, "sh", *kinds, "sh", "-c", _BOOT, self.path]
        with (self.path / "boot.log").open("wb") as log:
            self._unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self._init = int(until(children.read_text, "a process in the namespaces"))
        is_active = ("systemctl", "is-active", "basic.target")
        until(lambda: self.run(*is_active, check=False) == "active\n", "the boot")
        # A manager that starts before udev, without a devtmpfs on /dev, receives no events of udev.
        self.run("systemctl", "daemon-reexec")

    def run(self, *command: str | Path, check: bool = True) -> str:
        """Run a command beside systemd, and return its output."""
        enter = ["nsenter", "--target", str(self._init), "--mount", "--pid", "--net", "--uts", "--ipc"]
        return _run([*enter, "--cgroup", "--root", "--wd", *_ENVIRONMENT, *command], check=check)

    def close(self) -> None:
        """End all that runs there, and remove it. Idempotent."""
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait(PATIENCE_S)
            self._unshare = None
        for path in sorted(self._cgroup.rglob("*/"), reverse=True):
            until(lambda path=path: _removed(path), f"{path}: the end of its processes")  # type: ignore[misc]
        until(lambda: _removed(self._cgroup), "the end of all processes")
        _run(["rm", "-rf", "--one-file-system", self.path])


def _run(command: Sequence[str | Path], *, check: bool = True) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if check and ran.returncode:
        raise CommandFailed("clean root", [*map(str, command)], ran.returncode, ran.stdout + ran.stderr)
    return ran.stdout


def _cgroup2() -> Path:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _mirror() -> tuple[str, str]:
    """Return the host's release, and where apt-get has it from."""
    release = _run(["sh", "-c", '. /etc/os-release; echo "$VERSION_CODENAME"']).strip()
    asked = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(ORIGIN) $(REPO_URI)"]
    for line in _run([*asked, "Created-By: Packages"]).splitlines():
        codename, component, origin, uri = line.split(" ", 3)
        if (codename, component, origin) == (release, "main", "Debian"):
            return release, uri
    return release, "http://deb.debian.org/debian"
