"""The probes. Each tries the thing itself, where it can be tried without a change to the machine."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from vtl_tools.common.doctor import private_network
from vtl_tools.common.doctor.finding import Finding
from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import confinement, privilege

PYTHON_MIN: Final = (3, 11)
LINUX_MIN: Final = (5, 16)
"""The first with an egress hook for guards."""
LINUX_FOLLOWS: Final = (6, 16)
"""The first that keeps a guard on an interface that is deleted and created again."""

_MODULES: Final = {
    "click": "click",
    "scapy": "scapy",
    "dnspython": "dns",
    "PySocks": "socks",
    "prometheus_client": "prometheus_client",
}
"""Libraries, and the module that each brings."""
_PROGRAMS: Final = {"ip": "iproute2", "tor": "tor"}
"""Programs, and the Debian package of each."""
_CAPABILITIES: Final = {
    "CAP_NET_ADMIN": privilege.NET_ADMIN,
    "CAP_NET_RAW": privilege.NET_RAW,
    "CAP_BPF": privilege.BPF,
}


def probe_all() -> Iterator[Finding]:
    """Yield a finding for each name in needs.NEEDS. Takes up to a second."""
    yield _python()
    yield _linux()
    for name, module in _MODULES.items():
        yield _module(name, module)
    for name, package in _PROGRAMS.items():
        yield _program(name, package)
    yield _libpcap()
    yield _root()
    for name, number in _CAPABILITIES.items():
        yield _capability(name, number)
    yield _user()
    yield from _confinement()
    yield from private_network.probe()


def _python() -> Finding:
    wanted = ".".join(map(str, PYTHON_MIN))
    if sys.version_info >= PYTHON_MIN:
        return Finding("Python", "ok", platform.python_version())
    return Finding("Python", "missing", platform.python_version(), f"install Python {wanted} or later")


def _linux() -> Finding:
    release = platform.release()
    if platform.system() != "Linux" or sys.maxsize < 1 << 32:
        return Finding("Linux", "missing", platform.platform(), "use a 64-bit Linux")
    if linux_version(release) < LINUX_MIN:
        wanted = ".".join(map(str, LINUX_MIN))
        return Finding("Linux", "missing", release, f"use Linux {wanted} or later: older ones have no guard")
    if linux_version(release) < LINUX_FOLLOWS:
        release += "; a guard has a gap of 0.25 s when its interface is created again (6.16 has none)"
    return Finding("Linux", "ok", release)


def linux_version(release: str) -> tuple[int, int]:
    """Return the first two numbers of a kernel's release."""
    digits = [part for part in release.replace("-", ".").split(".")[:2] if part.isdecimal()]
    major, minor = (*map(int, digits), 0, 0)[:2]
    return major, minor


def _module(name: str, module: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        wanted = "'vtl-tools[metrics]'" if name == "prometheus_client" else name.lower()
        package = f"{sys.executable} -m pip install {wanted}"
        return Finding(name, "missing", "no such Python module", f"run '{package}'")
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "ok", "version unknown")


def _program(name: str, package: str) -> Finding:
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        return Finding(name, "missing", "not on the PATH", _install(package))
    return Finding(name, "ok", path)


def _libpcap() -> Finding:
    library = find_library("pcap")
    if library is None:
        return Finding("libpcap", "missing", "no such library", _install("libpcap0.8"))
    return Finding("libpcap", "ok", library)


def _install(package: str) -> str:
    return f"install it, on Debian by 'apt-get install {package}'"


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", "ok", "this user")
    return Finding("root", "missing", f"user {os.geteuid()}", "run it as root")


def _capability(name: str, number: int) -> Finding:
    if privilege.permitted() >> number & 1:
        return Finding(name, "ok", "this process has it")
    return Finding(name, "missing", "this process lacks it", "run the tool as root, or by a unit of systemd")


def _user() -> Finding:
    if os.geteuid():
        return Finding("user", "ok", "the tools run as you")
    try:
        found = privilege.account(None)
    except VTLError as e:
        return Finding("user", "missing", str(e).partition(";")[0], "run 'useradd --system vtl'")
    if found is None:
        return Finding("user", "missing", "root", "run 'useradd --system vtl'")
    if found.name != privilege.USERS[0]:
        return Finding("user", "ok", f"{found.name}; 'useradd --system vtl' gives the tools one of their own")
    return Finding("user", "ok", found.name)


def _confinement() -> Iterator[Finding]:
    machine = os.uname().machine
    if confinement.can_deny_calls():
        yield Finding("system call filter", "ok", machine)
    else:
        remedy = "use x86_64, aarch64 or riscv64, or accept a weaker confinement"
        yield Finding("system call filter", "missing", f"unknown on {machine}", remedy)
    if abi := confinement.landlock_abi():
        yield Finding("Landlock", "ok", f"ABI {abi}")
    else:
        yield Finding("Landlock", "missing", "not in this kernel", "boot with 'lsm=landlock,...'")
