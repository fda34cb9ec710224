"""Tells of ports that become used, as the kernel does it: eBPF programs through bpf(2), assembled by hand.

A raw tracepoint tells of each socket that enters LISTEN, and two hooks of the root cgroup of each bind(). A
third hook tells of sockets that are closed, without waking us. Programs and hooks go with the descriptors of
this process. bpf-helpers(7), and linux/bpf.h for the numbers.
"""

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from vtl_tools.common.device.bpf import bpf
from vtl_tools.common.device.handle import Handle
from vtl_tools.common.packet.ip import TCP
from vtl_tools.services.vortex.ports import Port

_MAP_CREATE, _PROG_LOAD, _RAW_TRACEPOINT_OPEN, _LINK_CREATE = 0, 5, 17, 28
_RINGBUF: Final = 27
_CGROUP_SOCK, _RAW_TRACEPOINT = 9, 17
_POST_BIND4, _POST_BIND6, _SOCK_RELEASE = 12, 13, 34
_PROBE_READ_KERNEL, _NETNS_COOKIE, _RESERVE, _SUBMIT = 113, 122, 131, 132
_NO_WAKEUP: Final = 1
_LISTEN: Final = 10
_SO_NETNS_COOKIE: Final = 71
_EVENT: Final = struct.Struct("=IIQ")  # protocol, port; of LISTEN: the kernel's address of the namespace
_PAGE: Final = mmap.PAGESIZE
_BUSY, _DISCARDED, _LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # on every architecture
_CONFIG_CREATE: Final = 6
_SKC_NUM: Final = 14
"""Where the local port is in struct sock_common: it has been there since Linux 3.9."""
_SKC_NET: Final = 48
"""Where the network namespace is, on a machine of 64 bits."""

_libc = ctypes.CDLL(None, use_errno=True)


def _op(code: int, dst: int = 0, src: int = 0, off: int = 0, k: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, off, k)


def _call(helper: int) -> bytes:
    return _op(0x85, k=helper)


def _set(register: int, k: int) -> bytes:
    return _op(0xB7, register, k=k)


def _copy(dst: int, src: int) -> bytes:
    return _op(0xBF, dst, src)


def _if_equal(register: int, k: int, skipped: bytes) -> bytes:
    return _op(0x15, register, off=len(skipped) // 8, k=k)


def _wide(register: int, value: int, source: int = 0) -> bytes:
    return _op(0x18, register, source, k=_signed(value)) + _op(0, k=_signed(value >> 32))


def _signed(value: int) -> int:
    return (value & 0xFFFF_FFFF) - ((value & 0x8000_0000) << 1)


def _emit(ring: int, fill: bytes, flags: int = 0) -> bytes:
    """Reserve an event, fill it through register 8, and submit it; if there is room."""
    written = _copy(8, 0) + fill + _copy(1, 8) + _set(2, flags) + _call(_SUBMIT)
    start = _wide(1, ring, 1) + _set(2, _EVENT.size) + _set(3, 0) + _call(_RESERVE)
    return start + _if_equal(0, 0, written) + written


def _listen_program(ring: int) -> bytes:
    """Tell the port of a socket that enters LISTEN. Arguments: struct sock *, old and new state."""

    def read(place: int, octets: int, offset: int) -> bytes:
        to, of = _copy(1, 8) + _op(0x07, 1, k=place), _copy(3, 6) + _op(0x07, 3, k=offset)
        return to + _set(2, octets) + of + _call(_PROBE_READ_KERNEL)

    zero = _op(0x62, 8, off=4, k=0) + _op(0x7A, 8, off=8, k=0)
    told = _emit(ring, _op(0x62, 8, k=TCP) + zero + read(4, 2, _SKC_NUM) + read(8, 8, _SKC_NET))
    is_listen = _op(0x79, 7, 1, 16) + _op(0x55, 7, off=len(told) // 8, k=_LISTEN)
    return _op(0x79, 6, 1, 0) + is_listen + told + _set(0, 0) + _op(0x95)


def _bind_program(ring: int, cookie: int) -> bytes:
    """Tell protocol and port of a socket of our namespace (struct bpf_sock). It never forbids anything."""
    fill = (
        _op(0x61, 1, 6, 12) + _op(0x63, 8, 1, 0)  # protocol
        + _op(0x61, 1, 6, 44) + _op(0x63, 8, 1, 4)  # src_port
        + _op(0x7A, 8, off=8, k=0)
    )  # fmt: skip
    return _of_namespace(cookie, _emit(ring, fill))


def _release_program(ring: int, cookie: int) -> bytes:
    fill = _op(0x7A, 8, k=0) + _op(0x7A, 8, off=8, k=0)
    return _of_namespace(cookie, _emit(ring, fill, _NO_WAKEUP))


def _of_namespace(cookie: int, told: bytes) -> bytes:
    asked = _copy(6, 1) + _call(_NETNS_COOKIE) + _wide(1, cookie)
    is_ours = _op(0x5D, 0, 1, len(told) // 8)
    return asked + is_ours + told + _set(0, 1) + _op(0x95)


class _Ring:
    """A ring buffer of the kernel's, of which this process is the reader."""

    def __init__(self, octets: int) -> None:
        self.octets = octets
        self.fd = _ask(_MAP_CREATE, struct.pack("=IIII", _RINGBUF, 0, 0, octets))
        both = mmap.PROT_READ | mmap.PROT_WRITE
        self._read_to = mmap.mmap(self.fd, _PAGE, mmap.MAP_SHARED, both)
        shown = _PAGE + 2 * octets  # the data appear twice, so that no event is in two parts
        self._written = mmap.mmap(self.fd, shown, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)

    def read(self) -> Iterator[tuple[int, int, int]]:
        """Yield the events that are there."""
        at = int.from_bytes(self._read_to[:8], "little")
        end = int.from_bytes(self._written[:8], "little")
        while at < end:
            place = _PAGE + (at & self.octets - 1)
            head = int.from_bytes(self._written[place : place + 4], "little")
            if head & _BUSY:
                return
            if not head & _DISCARDED:
                protocol, port, namespace = _EVENT.unpack_from(self._written, place + 8)
                yield protocol, port, namespace
            at += (head & _LENGTH) + 8 + 7 & ~7
            self._read_to[:8] = at.to_bytes(8, "little")

    def close(self) -> None:
        self._read_to.close()
        self._written.close()
        os.close(self.fd)


class PortEvents:
    """A source of the stage. on_used: called with each port that becomes used, and the time.

    Raises OSError where eBPF is refused. Linux 5.14 and later.
    """

    def __init__(self) -> None:
        self.on_used: Callable[[Port, float], None] = lambda port, now: None
        self._fds: list[int] = []
        self._namespace = 0
        self._used, self._closed = _Ring(1 << 16), _Ring(_PAGE)
        self.fileno = lambda: self._used.fd
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        try:
            self._trace(b"inet_sock_set_state", _listen_program(self._used.fd))
            root = _root_cgroup()
            self._fds.append(root)
            for kind in _POST_BIND4, _POST_BIND6:
                self._hook(root, kind, _bind_program(self._used.fd, cookie))
            self._hook(root, _SOCK_RELEASE, _release_program(self._closed.fd, cookie))
            self._namespace = self._own_namespace()
        except OSError:
            self.close()
            raise

    def _own_namespace(self) -> int:
        """Return the kernel's address of our network namespace, as a listener in it shows; 0: it did not."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        return next((where for _, seen, where in self._used.read() if where and seen == port), 0)

    def _trace(self, name: bytes, program: bytes) -> None:
        held = ctypes.create_string_buffer(name)
        loaded = self._load(_RAW_TRACEPOINT, program)
        self._fds.append(_ask(_RAW_TRACEPOINT_OPEN, struct.pack("=QII", ctypes.addressof(held), loaded, 0)))

    def _hook(self, cgroup: int, kind: int, program: bytes) -> None:
        loaded = self._load(_CGROUP_SOCK, program, kind)
        self._fds.append(_ask(_LINK_CREATE, struct.pack("=IIII", loaded, cgroup, kind, 0)))

    def _load(self, kind: int, program: bytes, attached: int = 0) -> int:
        held = ctypes.create_string_buffer(program, len(program))
        licence = ctypes.create_string_buffer(b"GPL")
        where, count = ctypes.addressof(held), len(program) // 8
        form = struct.pack("=IIQQ44xI", kind, count, where, ctypes.addressof(licence), attached)
        loaded = _ask(_PROG_LOAD, form)
        self._fds.append(loaded)
        return loaded

    def poll(self, now: float) -> bool:
        """Tell the ports that became used."""
        moved = False
        for protocol, port, namespace in self._used.read():
            moved = True
            if namespace in (0, self._namespace) or not self._namespace:
                self.on_used((protocol, port), now)
        return moved

    def has_closed(self) -> bool:
        """Return whether sockets were closed since the last call."""
        return sum(1 for _ in self._closed.read()) > 0

    def close(self) -> None:
        """Remove programs and hooks. Idempotent."""
        for fd in self._fds:
            os.close(fd)
        if self._fds:
            self._used.close()
            self._closed.close()
        self._fds = []


class PolledPorts:
    """In the place of PortEvents where eBPF is refused: a source that asks for all sockets periodically."""

    def __init__(self, sockets: Callable[[], set[Port]], every_s: float = 0.02) -> None:
        self.on_used: Callable[[Port, float], None] = lambda port, now: None
        self._sockets, self._every_s = sockets, every_s
        self._handle = Handle()
        self._handle.alarm(every_s)
        self.fileno = self._handle.fileno

    def poll(self, now: float) -> bool:
        """Tell the ports that are used."""
        if not self._handle.alarm_expired():
            return False
        for port in self._sockets():
            self.on_used(port, now)
        self._handle.alarm(self._every_s)
        return True

    def has_closed(self) -> bool:
        """Return True: it is not known."""
        return True

    def close(self) -> None:
        """Close the timer."""
        self._handle.close()


def _ask(command: int, attributes: bytes) -> int:
    return bpf(command, ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128))


def _root_cgroup() -> int:
    """Return a descriptor of the root of cgroup v2, which need not be mounted. Raises OSError."""
    for place in "/sys/fs/cgroup", "/sys/fs/cgroup/unified":
        if (Path(place) / "cgroup.controllers").exists():
            return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    made = _system_call(_FSOPEN, b"cgroup2", 1)
    try:
        _system_call(_FSCONFIG, made, _CONFIG_CREATE, None, None, 0)
        mounted = _system_call(_FSMOUNT, made, 1, 0)
    finally:
        os.close(made)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
    finally:
        os.close(mounted)


def _system_call(number: int, *arguments: object) -> int:
    done: int = _libc.syscall(number, *arguments)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done
