"""Tries what the kernel offers to the tools, in a network namespace of its own that vanishes afterwards.

An ordinary user gets a user namespace with it, where the kernel permits that. Then the finding is about the
kernel, and the capabilities are findings of their own.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Final

from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.bpf import Injector
from vtl_tools.common.device.tap import TapDevice
from vtl_tools.common.doctor.finding import Finding
from vtl_tools.common.host.guard import Guard
from vtl_tools.common.selftest import namespaces

PATIENCE_S: Final = 20
"""How long all trials together may take."""

_CLONE_NEWUSER: Final = 0x10000000
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def _packet_sockets() -> None:
    with PacketDevice("lo"):
        pass


def _packet_fanout() -> None:
    with PacketDevice("lo", fanout=1):
        pass


def _tap() -> None:
    with TapDevice("vtldoctor"):
        pass


def _guard() -> None:
    with Guard("lo"):
        pass


def _ebpf() -> None:
    injector = Injector()
    injector.send(bytearray(60), socket.if_nametoindex("lo"))
    injector.close()


_TRIALS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "packet sockets": (_packet_sockets, "use a kernel with CONFIG_PACKET; 'modprobe af_packet'"),
    "packet fanout": (_packet_fanout, "use a kernel with CONFIG_PACKET; 'modprobe af_packet'"),
    "tap": (_tap, "run 'modprobe tun'; a container needs the device /dev/net/tun"),
    "guard": (
        _guard,
        "install nftables 1.0.1 or later, on Debian by 'apt-get install nftables'; run 'modprobe nf_tables'",
    ),
    "eBPF": (_ebpf, "use a kernel with CONFIG_BPF_SYSCALL, and CAP_BPF outside a container"),
}


def probe() -> Iterator[Finding]:
    """Yield whether there are network namespaces, and a finding for each trial."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reading)
            with open(writing, "w") as told:  # noqa: PTH123 - a descriptor
                json.dump(_try_all(), told)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading) as told:  # noqa: PTH123 - likewise
        text = told.read()
    os.waitpid(pid, 0)
    yield from _findings(json.loads(text) if text else {"": "the trial ended early"})


def _findings(told: dict[str, str]) -> Iterator[Finding]:
    name = "network namespaces"
    if why := told.get("", ""):
        remedy = "run vtl-doctor as root" if os.geteuid() else "use a kernel with CONFIG_NET_NS"
        yield Finding(name, "missing", why, remedy)
        for trial in _TRIALS:
            yield Finding(trial, "unknown", "not tried, for want of a network namespace", remedy)
        return
    yield Finding(name, "ok", "made one")
    for trial, (_, remedy) in _TRIALS.items():
        why = told[trial]
        if not why:
            yield Finding(trial, "ok", "tried in a network namespace")
        elif os.geteuid() and "not permitted" in why:
            yield Finding(trial, "unknown", why, "run vtl-doctor as root")
        else:
            yield Finding(trial, "missing", why, remedy)


def _try_all() -> dict[str, str]:
    """Return, by trial, why it failed; "": it did not. The key "" is for the namespace itself."""
    signal.alarm(PATIENCE_S)
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - warnings of a trial are not for the user
    try:
        namespaces.unshare(namespaces.CLONE_NEWNET | (_CLONE_NEWUSER if os.geteuid() else 0))
    except OSError as e:
        return {"": e.strerror or str(e)}
    told = {"": ""}
    _set_loopback_up()
    for name, (trial, _) in _TRIALS.items():
        try:
            trial()
            told[name] = ""
        except Exception as e:
            told[name] = str(e).partition(";")[0] or type(e).__name__
    return told


def _set_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
