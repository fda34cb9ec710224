"""Socket filters (classic BPF), and injection of frames into the host's network stack (eBPF).

bpf(2), packet(7), and linux/filter.h for the numbers.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from vtl_tools.common.packet import ether, ip
from vtl_tools.common.packet.icmp import (
    PARAMETER_PROBLEM,
    TIME_EXCEEDED,
    UNREACHABLE,
    V6_PARAMETER_PROBLEM,
)
from vtl_tools.common.packet.tcp import FIN, RST, SYN
from vtl_tools.common.packet.view import Buffer

ALL: Final = 0xFFFF_FFFF
"""Number of octets that a filter returns to keep a whole frame."""
INJECTED: Final = 0x56544D
"""SO_MARK of injected frames. It differs from the guard's, which every service gives to what it sends: what
an inline service forwards to the VM must be heard."""

_SO_ATTACH_FILTER: Final = 26
_INSTRUCTION: Final = struct.Struct("=HBBI")  # code, jump if true, jump if false, k
_RANGE: Final = struct.Struct("=" + 3 * "HBBI")

_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30
_LD_B_X: Final = 0x50
_LDX_IHL: Final = 0xB1
_MOD: Final = 0x94
_LD_H_X: Final = 0x48
_JEQ, _JSET = 0x15, 0x45
_JGT, _JGE = 0x25, 0x35
_JA: Final = 0x05
_RET: Final = 0x06
_PKTTYPE, _MARK, _RANDOM = 0xFFFF_F004, 0xFFFF_F014, 0xFFFF_F038  # SKF_AD_OFF and what is there
_HOST, _OUTGOING = 0, 4  # linux/if_packet.h
_FRAGMENT: Final = 0x1FFF

Step = tuple[int, int] | tuple[int, int, str] | tuple[int, int, str, str] | str | bytes
"""An instruction and its k; a jump also has its labels, if true and if false ("": next), within 255 steps.

_JA has one label, anywhere. A name: a label. Octets: instructions that are assembled already.
"""


def assemble(steps: Sequence[Step]) -> bytes:
    """Return a classic BPF program. Jumps go to labels, forward only."""
    at, count = {}, 0
    for step in steps:
        if isinstance(step, str):
            at[step] = count
        elif isinstance(step, bytes):
            count += len(step) // _INSTRUCTION.size
        else:
            count += 1
    program = b""
    for step in steps:
        if isinstance(step, str):
            continue
        if isinstance(step, bytes):
            program += step
            continue
        code, k, *where = step
        here = len(program) // _INSTRUCTION.size + 1
        jumps = [at[label] - here if label else 0 for label in map(str, where)] or [0, 0]
        if code == _JA:
            k, jumps = jumps[0], [0, 0]
        program += _INSTRUCTION.pack(code, *jumps, k)
    return program


def attach(sock: socket.socket, program: bytes) -> None:
    """Attach a filter to a socket, from the next frame on. Replaces an earlier filter."""
    held = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // _INSTRUCTION.size, ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


NOTHING: Final = assemble([(_RET, 0)])


def incoming_filter(*, shared: bool, own: bytes = b"", vm: bytes = b"") -> bytes:
    """Return a filter that keeps whole frames that an interface receives, and not those that are sent there.

    shared: drop frames for the host's own Ethernet address. own: this address, for an interface whose packet
    types do not tell. vm: an address to which all frames are kept, since a VM has it.
    """

    def if_for(mac: bytes, then: str, otherwise: str) -> list[Step]:
        head, tail = int.from_bytes(mac[:4]), int.from_bytes(mac[4:])
        return [(_LD_W, 0), (_JEQ, head, "", otherwise), (_LD_H, 4), (_JEQ, tail, then, otherwise)]

    for_host: list[Step] = [
        (_JEQ, _HOST, "", "keep"),
        *(if_for(vm, "keep", "for another") if vm else []),
        "for another",
        *(if_for(own, "drop", "keep") if own else []),
    ]
    return assemble(
        [
            (_LD_B, _PKTTYPE),
            (_JEQ, _OUTGOING, "drop", "" if shared else "keep"),
            *(for_host if shared else []),
            "drop",
            (_RET, 0),
            "keep",
            (_RET, ALL),
        ]
    )


def _tagged_or_not(steps: Callable[[int], list[Step]]) -> list[Step]:
    """Repeat steps for frames without and with a VLAN tag: from the EtherType on."""
    return [
        (_LD_H, 12),
        (_JEQ, ether.CTAG, "tagged", ""),
        (_JEQ, ether.STAG, "tagged", ""),
        *steps(0),
        "tagged",
        (_LD_H, 16),
        *steps(4),
    ]


def _not_injected(outgoing: str) -> list[Step]:
    """Jump to a label for a packet that leaves, and drop one that we injected, which can only arrive."""
    return [
        (_LD_B, _PKTTYPE),
        (_JEQ, _OUTGOING, outgoing, ""),
        (_LD_W, _MARK),
        (_JEQ, INJECTED, "drop", ""),
    ]


def segment_filter(snap: int, one_in: int = 1) -> bytes:
    """Return a filter that keeps `snap` octets of TCP segments of both directions, unless we injected them.

    one_in: sample one in so many of the segments without SYN, FIN or RST, at random.
    """

    def steps(tag: int) -> list[Step]:
        return [
            (_JEQ, ether.IPV6, f"v6.{tag}", ""),
            (_JEQ, ether.IPV4, "", "drop"),
            (_LD_B, 23 + tag),
            (_JEQ, ip.TCP, "", "drop"),
            (_LD_H, 20 + tag),
            (_JSET, _FRAGMENT, "drop", ""),
            (_LDX_IHL, 14 + tag),
            (_LD_B_X, 14 + tag + 13),
            (_JSET, SYN | FIN | RST, "keep", "sample"),
            f"v6.{tag}",
            (_LD_B, 20 + tag),
            (_JEQ, ip.TCP, "", "drop"),
            (_LD_B, 54 + tag + 13),
            (_JSET, SYN | FIN | RST, "keep", "sample"),
        ]

    sample: list[Step] = ["sample", (_LD_W, _RANDOM), (_MOD, max(one_in, 1)), (_JEQ, 0, "keep", "drop")]
    return assemble(
        [
            *_not_injected("parse"),
            "parse",
            *_tagged_or_not(steps),
            *sample,
            "keep",
            (_RET, snap),
            "drop",
            (_RET, 0),
        ]
    )


def conversation_filter(*, outgoing: bool) -> bytes:
    """Return a filter that keeps whole TCP, ARP and ICMPv6 packets of one direction.

    outgoing: packets that the host sends on the interface; else packets that arrive there, unless we injected
    them.
    """

    def steps(tag: int) -> list[Step]:
        return [
            (_JEQ, ether.ARP, "keep", ""),
            (_JEQ, ether.IPV6, f"v6.{tag}", ""),
            (_JEQ, ether.IPV4, "", "drop"),
            (_LD_B, 23 + tag),
            (_JEQ, ip.TCP, "keep", "drop"),
            f"v6.{tag}",
            (_LD_B, 20 + tag),
            (_JEQ, ip.TCP, "keep", ""),
            (_JEQ, ip.ICMPV6, "keep", "drop"),
        ]

    side: list[Step] = [(_LD_B, _PKTTYPE), (_JEQ, _OUTGOING, "", "drop")]
    if not outgoing:
        side = _not_injected("drop")
    return assemble([*side, *_tagged_or_not(steps), "keep", (_RET, ALL), "drop", (_RET, 0)])


Ranges = Sequence[tuple[int, int]]
"""Ranges of ports, first and last."""


def port_filter(tcp: Ranges, udp: Ranges, *, echo: bool) -> bytes:
    """Return a filter that keeps whole packets for the host itself to these ports; echo: and ICMP echoes.

    Untagged, and of IPv6 without extension headers but that of a fragment. All fragments, whose ports may be
    elsewhere, and all ICMP errors are kept.
    """

    def steps(version: int, l4: int, icmp: int, request: int) -> list[Step]:
        load = _LD_B_X if version == 4 else _LD_B
        asks: list[Step] = [(_JEQ, request, "keep", "")] if echo else []
        kinds: list[Step] = (
            [(_JEQ, kind, "keep", "") for kind in (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)]
            if version == 4
            else [(_JGT, V6_PARAMETER_PROBLEM, "", "keep")]
        )
        fragments: list[Step] = [] if version == 4 else [(_JEQ, ip.FRAGMENT, "keep", "")]
        icmp_steps: list[Step] = [(_JEQ, icmp, "", "drop"), (load, l4), *asks, *kinds, (_RET, 0)]
        return [*_to_lists(version), *fragments, *icmp_steps]

    return assemble(
        [
            (_LD_B, _PKTTYPE),
            (_JEQ, _HOST, "", "drop"),
            *_by_version(steps, fragments="keep"),
            "drop",
            (_RET, 0),
            "keep",
            (_RET, ALL),
            *_port_lists({"tcp": tcp, "udp": udp}, at=2),
        ]
    )


def leaving_filter(tcp: Ranges, udp: Ranges, mark: int) -> bytes:
    """Return a filter that keeps headers of what the host sends from these ports; not what has our mark."""

    def steps(version: int, l4: int, icmp: int, request: int) -> list[Step]:
        return [*_to_lists(version), (_RET, 0)]

    return assemble(
        [
            (_LD_B, _PKTTYPE),
            (_JEQ, _OUTGOING, "", "drop"),
            (_LD_W, _MARK),
            (_JEQ, mark, "drop", ""),
            *_by_version(steps),
            "drop",
            (_RET, 0),
            *_port_lists({"tcp": tcp, "udp": udp}, at=0),
        ]
    )


def _by_version(steps: Callable[[int, int, int, int], list[Step]], fragments: str = "drop") -> list[Step]:
    """Load the protocol of an untagged packet. steps: by version, payload offset, ICMP, echo request.

    fragments: the label for those of IPv4.
    """
    return [
        (_LD_H, 12),
        (_JEQ, ether.IPV6, "v6", ""),
        (_JEQ, ether.IPV4, "", "drop"),
        (_LD_H, 20),
        (_JSET, _FRAGMENT | 0x2000, fragments, ""),
        (_LDX_IHL, 14),
        (_LD_B, 23),
        *steps(4, 14, ip.ICMP, 8),
        "v6",
        (_LD_B, 20),
        *steps(6, 54, ip.ICMPV6, 128),
    ]


def _to_lists(version: int) -> list[Step]:
    """Go to the list of the protocol, if it has one. The lists are too long for other jumps."""
    no_tcp, no_udp = f"no tcp.{version}", f"no udp.{version}"
    return [
        (_JEQ, ip.TCP, "", no_tcp),
        (_JA, 0, f"tcp.{version}"),
        no_tcp,
        (_JEQ, ip.UDP, "", no_udp),
        (_JA, 0, f"udp.{version}"),
        no_udp,
    ]


def _port_lists(lists: dict[str, Ranges], at: int) -> list[Step]:
    """Keep a packet if the port at an offset of its transport header is in the list of its protocol."""
    program: list[Step] = []
    for name, ranges in lists.items():
        tests = b"".join(
            _RANGE.pack(_JGE, 0, 2, low, _JGT, 1, 0, high, _RET, 0, 0, ALL) for low, high in ranges
        )
        for version, load in (4, (_LD_H_X, 14 + at)), (6, (_LD_H, 54 + at)):
            program += [f"{name}.{version}", load, tests, (_RET, 0)]
    return program


# --- injection of frames into the host's stack

_libc = ctypes.CDLL(None, use_errno=True)
_NR_BPF: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361}
_TRIES: Final = 16
_PROG_LOAD: Final = 5
_PROG_TEST_RUN: Final = 10
_SCHED_CLS: Final = 3
_CTX: Final = struct.Struct("=8xI36xI140x")  # struct __sk_buff: mark, cb[0]
_LOAD: Final = struct.Struct("=IIQQ24x")  # type, instructions; their address; the licence's
_RUN: Final = struct.Struct("=IIIIQQIIIIQQ16x")
_LICENSE: Final = b"GPL"  # required for bpf_clone_redirect
_CLONE_REDIRECT: Final = 13
_INGRESS: Final = 1
_PROGRAM: Final = b"".join(
    struct.pack("=BBhi", code, registers, offset, k)
    for code, registers, offset, k in (
        (0x61, 0x12, 48, 0),  # r2 = skb->cb[0], the interface
        (0xB7, 0x03, 0, _INGRESS),  # r3 = flags
        (0x85, 0x00, 0, _CLONE_REDIRECT),  # r0 = bpf_clone_redirect(skb, r2, r3)
        (0x95, 0x00, 0, 0),
    )
)


class Injector:
    """Injects frames into the host's network stack as if an interface had received them.

    BPF_PROG_TEST_RUN runs a program on each frame, which redirects it to the interface. This needs no extra
    interface and works for each kind. Interfaces are those of the caller's network namespace. Linux 5.2 and
    later.
    """

    def __init__(self) -> None:
        """Load the program. Raises OSError."""
        program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
        licence = ctypes.create_string_buffer(_LICENSE)
        count = len(_PROGRAM) // 8
        load = _LOAD.pack(_SCHED_CLS, count, ctypes.addressof(program), ctypes.addressof(licence))
        self._fd = bpf(_PROG_LOAD, ctypes.create_string_buffer(load, len(load)))
        self._ctx = ctypes.create_string_buffer(_CTX.size)
        self._run = ctypes.create_string_buffer(_RUN.size)

    def send(self, frame: Buffer, index: int) -> bool:
        """Let interface `index` receive an Ethernet frame. Return whether it did. Raises OSError.

        frame: without virtio_net_hdr, with complete checksums; about 3,500 octets at most.
        """
        octets = bytes(frame)
        held = ctypes.c_char_p(octets)
        where = ctypes.cast(held, ctypes.c_void_p).value
        _CTX.pack_into(self._ctx, 0, INJECTED, index)
        ctx = ctypes.addressof(self._ctx)
        _RUN.pack_into(self._run, 0, self._fd, 0, len(octets), 0, where, 0, 1, 0, _CTX.size, 0, ctx, 0)
        bpf(_PROG_TEST_RUN, self._run)
        return not int.from_bytes(self._run.raw[4:8], "little")

    def close(self) -> None:
        """Unload the program. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def bpf(command: int, attributes: "ctypes.Array[ctypes.c_char]") -> int:
    """Call bpf(2). Return what it does. Raises OSError."""
    number = _NR_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(f"bpf(2) is not known on {os.uname().machine}")
    code = errno.EAGAIN
    for _ in range(_TRIES):  # a signal that arrives ends the kernel's check of a program
        done: int = _libc.syscall(number, command, attributes, len(attributes))
        if done >= 0:
            return done
        if (code := ctypes.get_errno()) != errno.EAGAIN:
            break
    raise OSError(code, os.strerror(code))
