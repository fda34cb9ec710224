"""Plays a conversation against the kernel's TCP and against our endpoint, and notes what each answers.

A step is a call (`connect`, `listen`, `write N`, `read N`, `shutdown`: our close(), `abort`), `wait S`,
or a segment of the peer as in tests/unit/tcp/script.py: `S. 0:0(0) ack 1 win 9 <mss 1000>`. All conversations
with the kernel run side by side, on one TUN interface in a namespace, by the real clock.
"""

import os
import re
import select
import socket
import struct
import time
from contextlib import suppress
from fcntl import ioctl

from lab.host import Host
from vtl_tools.common.packet import address, build, ether, tcp, vnet
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended, SegmentDrop
from vtl_tools.common.tcp.wire import Path

LETTERS = {"F": tcp.FIN, "S": tcp.SYN, "R": tcp.RST, "P": tcp.PSH, ".": tcp.ACK, "U": tcp.URG}
SEGMENT = re.compile(
    r"([FSRPU.0]+) (-?\d+):-?\d+\((\d+)\)(?: ack (-?\d+))?(?: win (\d+))?(?: urg (\d+))?(?: <(.*)>)?$"
)
MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
HOSTS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
IRS = 5000
SETTLE_S = 0.015
_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001


class End:
    """One end of a conversation, with a peer that says what the steps tell. said: what it said, as text."""

    def __init__(self, number, version):
        ours, theirs = (address.ip(text) for text in HOSTS[version])
        self.version = version
        self.path = Path(*MACS, ours, theirs, 10000 + number, 30000 + number)
        self.iss = None
        self.tsval = 0
        self.said = []

    def frame(self, step):
        path = self.path
        flags, seq, size, ack, win, urg, more = SEGMENT.match(step).groups()
        bits = sum(LETTERS.get(letter, 0) for letter in flags)
        return build.tcp(
            src_mac=path.remote_mac, dst_mac=path.local_mac, src=path.remote, dst=path.local,
            sport=path.remote_port, dport=path.local_port, seq=(IRS + int(seq)) % 2**32,
            ack=((self.iss or 0) + int(ack)) % 2**32 if ack is not None else 0, flags=bits,
            window=10_000 if win is None else int(win), payload=b"x" * int(size), urgent=int(urg or 0),
            options=tcp.encode_options(**self.options(more)),
        )  # fmt: skip

    def options(self, text):
        found = {}
        for option in filter(None, (text or "").split(",")):
            name, *words = option.split()
            if name == "TS":
                found["timestamps"] = int(words[0]), self.tsval
            elif name == "sack":
                blocks = [word.split(":") for word in words]
                found["sack"] = [tuple((self.iss + int(edge)) % 2**32 for edge in block) for block in blocks]
            else:
                key = {"mss": "mss", "wscale": "window_scale", "sackOK": "sack_permitted"}[name]
                found[key] = int(words[0]) if words else True
        return found

    def hear(self, pkt):
        heard = pkt.tcp
        if heard.flags & tcp.SYN and self.iss is None:
            self.iss = heard.seq
        flags = "".join(letter for letter, bit in LETTERS.items() if heard.flags & bit and letter != "P")
        seq = (heard.seq - (self.iss or 0) + 2**31) % 2**32 - 2**31
        if heard.flags & tcp.RST and heard.seq == 0:
            seq = "zero"
        size = len(heard.payload)
        text = f"{flags} {seq}:({size})"
        if heard.flags & tcp.ACK:
            text += f" ack {(heard.ack - IRS + 2**31) % 2**32 - 2**31}"
        if not heard.window:
            text += " win 0"
        if heard.urgent:
            text += f" urg {heard.urgent}"
        if heard.timestamps:
            self.tsval = heard.timestamps[0]
            text += f" <ecr {heard.timestamps[1]}>"
        if heard.sack:
            text += " <sack " + " ".join(f"{left - IRS}:{right - IRS}" for left, right in heard.sack) + ">"
        self.said.append(text)


class OurEnd(End):
    """Our endpoint, in virtual time."""

    def __init__(self, config, version):
        super().__init__(0, version)
        self.now = 100.0
        self.tcp = Endpoint(self.path, b"secret", self.now, config)

    def do(self, step):
        word, _, argument = step.partition(" ")
        if word == "wait":
            self.pass_(float(argument))
        elif word == "write":
            self.attempt(lambda: self.tcp.write(bytes(int(argument))))
        elif word == "read":
            self.tcp.read(int(argument))
        elif word == "shutdown":
            self.attempt(self.tcp.close)
        elif hasattr(self.tcp, word):
            self.attempt(getattr(self.tcp, word))
        else:
            self.tcp.receive(self.frame(step), self.now)
            if self.tcp.ended is Ended.CLOSED and self.tcp.drops[SegmentDrop.SUPERSEDED]:
                old, self.tcp = self.tcp, Endpoint(self.path, b"secret", self.now, self.tcp.config)
                self.tcp.listen(after=old)
                self.tcp.receive(self.frame(step), self.now)
            if self.tcp.asked:
                self.tcp.accept()
        self.pump()
        self.pass_(SETTLE_S)

    def attempt(self, call):
        try:
            call()
        except ValueError:
            self.said.append("error")

    def pump(self):
        for frame in self.tcp.transmit(self.now):
            for piece in segment(frame):
                self.hear(Packet.at(bytearray(piece)))

    def pass_(self, seconds):
        end = self.now + seconds
        while (due := self.tcp.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.tcp.wake(self.now)
            self.pump()
        self.now = end


class KernelEnd(End):
    """A socket of the kernel's."""

    def __init__(self, number, version, options):
        super().__init__(number, version)
        self.options_, self.listener, self.sock = options, None, None

    def make(self):
        sock = socket.socket(FAMILY[self.version])
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for level, name, value in self.options_:
            sock.setsockopt(level, name, value)
        sock.bind((HOSTS[self.version][0], self.path.local_port))
        return sock

    def accepted(self):
        if self.sock is None and self.listener is not None:
            try:
                self.sock, _ = self.listener.accept()
                self.sock.setblocking(False)
            except OSError:
                return None
        return self.sock

    def do(self, step, send):
        word, _, argument = step.partition(" ")
        sock = self.accepted()
        try:
            if word == "listen":
                self.listener = self.make()
                self.listener.listen(1)
            elif word == "connect":
                self.sock = self.make()
                self.sock.connect_ex((HOSTS[self.version][1], self.path.remote_port))
            elif word == "write":
                sock.send(bytes(int(argument)))
            elif word == "read":
                with suppress(BlockingIOError):
                    sock.recv(int(argument))
            elif word == "shutdown":
                (sock or self.listener).shutdown(socket.SHUT_WR)
            elif word == "abort":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
            elif word != "wait":
                send(self.frame(step))
        except (OSError, AttributeError):
            self.said.append("error")

    def close(self):
        for sock in self.sock, self.listener:
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()


class Kernel:
    """A namespace with a TUN interface, behind which the peers of all conversations are."""

    def __init__(self, lab, sysctls=()):
        self.played = 0
        self.host: Host = lab.host("kernel")
        with self.host.enter():
            self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            ioctl(self.tun, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN_NO_PI))
        lab.defer(os.close, self.tun)
        self.host.run("ip", "link", "set", "tun0", "up")
        self.host.run("ip", "addr", "add", "10.0.0.1/24", "dev", "tun0")
        self.host.run("ip", "addr", "add", "fd00::1/64", "dev", "tun0", "nodad")
        for name, value in sysctls:
            self.host.sysctl(name, value)

    def send(self, frame):
        os.write(self.tun, frame[vnet.VNET + 14 :])

    def hear(self, ends, seconds):
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.tun], [], [], left)[0]:
                return
            octets = os.read(self.tun, 65536)
            kind = ether.IPV4 if octets[0] >> 4 == 4 else ether.IPV6
            pkt = Packet.at(bytearray(vnet.NONE + MACS[1] + MACS[0] + struct.pack("!H", kind) + octets))
            if pkt.tcp is not None and pkt.tcp.sport in ends:
                ends[pkt.tcp.sport].hear(pkt)

    def play(self, conversations, version=4, options=()):
        """Return what the kernel says at each step of each conversation."""
        with self.host.enter():
            ends = [KernelEnd(self.played + number, version, options) for number in range(len(conversations))]
            self.played += len(ends)
            ports = {end.path.local_port: end for end in ends}
            answers = [[] for _ in ends]
            for turn in range(max(map(len, conversations))):
                waits = 0.0
                for end, steps in zip(ends, conversations, strict=True):
                    if turn < len(steps):
                        end.do(steps[turn], self.send)
                        if steps[turn].startswith("wait "):
                            waits = max(waits, float(steps[turn].split()[1]))
                self.hear(ports, waits + SETTLE_S)
                for end, steps, answer in zip(ends, conversations, answers, strict=True):
                    if turn < len(steps):
                        answer.append(end.said)
                        end.said = []
            for end in ends:
                end.close()
            self.hear(ports, SETTLE_S)
        return answers


def ours(steps, config, version=4):
    """Return what our endpoint says at each step."""
    end, answer = OurEnd(config, version), []
    for step in steps:
        end.do(step)
        answer.append(end.said)
        end.said = []
    return answer


PLAIN = Config(timestamps=False, sack=False, window_scaling=False, mss=1000, syn_timeout_s=180.0)
