"""vtl-subnet: messages of peers, and all that comes on a link that others share.

Checked: Malformed and nothing else; a message that is read is read again from what frame() makes of it; with
a key, nothing without its tag is believed; what the VM gets from the direct link came from an address that is
allowed, by a peer whose shortcut is up, and is for an address of the VM; what leaves for the direct link goes
to such a peer; what is remembered and what one input makes it say is bounded.
"""

import hmac
from contextlib import suppress
from ipaddress import ip_network
from random import Random

from tests.fuzz.frames import FRAMES
from tests.fuzz.octets import Octets, blob
from vtl_tools.cmd.subnet import DEFAULT, DIRECT, FROM_VM, Subnet
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.services.subnet.message import ADDRESSES_MAX, MessageKind, SubnetMessage
from vtl_tools.services.subnet.peer import PeerState
from vtl_tools.services.subnet.table import PEERS_MAX
from vtl_tools.services.subnet.vm import VM

VM_MAC, PEER_MAC, GATEWAY = b"\x52\x54\0\0\0\1", b"\x52\x54\0\0\0\2", b"\2\0\0\0\0\xfe"
VM_IP, PEER_IP = b"\x0a\1\0\5", b"\x0a\2\0\5"
ALLOW = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
KEY = b"k" * 32
STEPS_MAX = 24
SAID_MAX = 64


class Site:
    """A VM behind its vtl-subnet; what leaves it is judged."""

    def __init__(self, key: bytes | None) -> None:
        self.key, self.now, self.said = key, 100.0, 0
        self.probes: dict[bytes, bytes] = {}
        """The nonce that was last sent to each Ethernet address."""
        self.tagged = False
        """Whether anything came that bears the key's tag."""
        self.stage = Subnet(
            VM(VM_MAC, [ip_network("10.1.0.5/32")]), nonce=Random(1).randbytes, allow=ALLOW, key=key
        )
        self.stage.out = [self.to_vm, self.to_default, self.to_direct]
        for port in FROM_VM, DEFAULT, DIRECT:
            self.stage.on_mtu(port, 1500)
        self.port = FROM_VM

    def up(self) -> dict[bytes, bytes]:
        """Return the addresses that the short way leads to, and the Ethernet address of each."""
        found = self.stage.peers.table.shortcuts.items()
        return {octets: one.peer.mac for octets, one in found if one.state is PeerState.UP}

    def to_vm(self, batch: Batch, now: float) -> None:
        for frame in batch:
            if self.port != DIRECT:
                continue
            pkt = Packet.at(frame)
            assert pkt.eth.dst == VM_MAC
            src, dst = pkt.ip.src, pkt.ip.dst
            assert src[0] in (10, 0xFD), "an address that is not allowed reaches the VM"
            assert dst == VM_IP, "what is not for the VM reaches it"
            assert self.tagged or self.key is None, "a peer without the key reaches the VM"

    def to_default(self, batch: Batch, now: float) -> None:
        assert self.port == FROM_VM, "what others sent goes to the VM's network"

    def to_direct(self, batch: Batch, now: float) -> None:
        for frame in batch:
            self.said += 1
            with suppress(Malformed):
                said = SubnetMessage.at(frame, self.key)
                assert said.mac == VM_MAC
                if said.kind is MessageKind.PROBE:
                    self.probes[bytes(frame[VNET : VNET + 6])] = said.nonce
                continue
            pkt = Packet.at(frame)
            if pkt.is_arp_request or pkt.nd is not None:  # a probe of a peer that has no process
                assert pkt.eth.src == VM_MAC
                continue
            assert self.port == FROM_VM
            assert self.up().get(pkt.ip.dst) == pkt.eth.dst, "the short way to who is no peer"

    def push(self, port: int, frame: bytes) -> None:
        if len(frame) < VNET + 14:
            return  # no link hands over less
        if port == DIRECT:
            self.tagged |= is_tagged(frame)
        self.port, self.said = port, 0
        self.stage.on_batch(port, Batch.of([frame]), self.now)
        self.stage.settle(self.now)
        assert self.said <= SAID_MAX, "one frame makes it say so much"

    def message(self, take: Octets) -> None:
        """Let a peer say something that is well formed; a nonce is often the one that was asked with."""
        kind, how = take.pick(list(MessageKind)), take.number()
        mac = take.pick((PEER_MAC, b"\x52\x54\0\0\0\3", VM_MAC))
        addresses = [PEER_IP, b"\x0a\1\0\5", take.take(4).ljust(4, b"\1")][: take.number() % 4]
        nonce = self.probes.get(mac, bytes(8)) if how & 1 else take.take(8).ljust(8, b"\0")
        said = SubnetMessage(
            kind, mac, take.number(2), tuple(addresses), nonce, take.number(2), bool(how & 2)
        )
        self.push(DIRECT, said.frame(VM_MAC if how & 4 else b"\3VTLS\1", KEY if how & 8 else None))

    def pass_(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(40):
            due = self.stage.deadline()
            if due is None or due > until:
                break
            self.now, self.port, self.said = max(self.now, due), DIRECT, 0
            self.stage.wake(self.now)
            self.stage.settle(self.now)
            assert self.said <= SAID_MAX
        self.now = until


def is_tagged(frame: bytes) -> bool:
    """Whether a frame ends as who has the key ends it: the judge's own reading of docs/subnet.md."""
    end = VNET + 14 + int.from_bytes(frame[VNET + 22 : VNET + 24], "big")
    return hmac.digest(KEY, frame[VNET : end - 16], "sha256")[:16] == frame[end - 16 : end]


def packet(take: Octets, port: int) -> bytes:
    """Return an IP packet between the VM and its peer, or nearly."""
    from_vm = port == FROM_VM
    src, dst = (VM_IP, PEER_IP) if from_vm else (PEER_IP, VM_IP)
    macs = (VM_MAC, GATEWAY) if from_vm else (take.pick((PEER_MAC, GATEWAY, VM_MAC)), VM_MAC)
    frame = build.udp(src_mac=macs[0], dst_mac=macs[1], src=src, dst=dst, sport=5, dport=6,
                      payload=bytes(take.number()), ttl=take.pick((64, 255, 1)))  # fmt: skip
    for _ in range(take.number() % 3):
        frame[10 + take.number() % 40] = take.number()
    return bytes(frame)


def read(frame: bytes) -> None:
    """Read a message, and again what is made of it."""
    for key in None, KEY:
        try:
            said = SubnetMessage.at(frame, key)
        except Malformed:
            continue
        again = SubnetMessage.at(said.frame(frame[VNET : VNET + 6], key), key)
        assert again == said


def one(data: bytes) -> None:
    take = Octets(data)
    site = Site(KEY if take.flag() else None)
    for _ in range(STEPS_MAX):
        if not take.left:
            break
        what = take.number()
        port = (FROM_VM, DEFAULT, DIRECT)[(what >> 4) % 3]
        if what % 4 == 0:
            frame = take.blob()
            read(frame)
            site.push(port, frame)
        elif what % 4 == 1:
            site.message(take)
        elif what % 4 == 2:
            site.push(port, packet(take, port))
        else:
            site.pass_(take.number(2) / 1000)
        table = site.stage.peers.table
        assert len(table.peers) <= PEERS_MAX
        assert len(table.shortcuts) <= PEERS_MAX * ADDRESSES_MAX
    site.stage.status(site.now)


def seeds() -> list[bytes]:
    said = [
        SubnetMessage(kind, PEER_MAC, 1500, (PEER_IP,), b"nonce..."[:8], 1, wanted=True)
        for kind in MessageKind
    ]
    frames = [one.frame(VM_MAC, key) for one in said for key in (None, KEY)]
    from_vm, from_peer, pause = bytes((2, 9, 0, 0)), bytes((0x22, 0, 9, 0, 0)), bytes((3, 0, 250))
    made = []
    for flag, key in (0, 0), (1, 8), (1, 0):

        def say(kind: int, how: int, key: int = key) -> bytes:
            nonce = b"" if how & 1 else b"theirs.."
            return bytes((1, kind, how | key, 0)) + bytes(4) + b"\1" + nonce + bytes((5, 220, 0, 1))

        known = say(0, 0) + from_vm + pause + say(1, 6) + from_vm
        made.append(
            bytes((flag,)) + known + (say(2, 5) + pause) * 6 + say(1, 6) + from_vm + from_peer + say(3, 5)
        )
    made += [
        bytes((1,)) + bytes((what,)) + blob(frame) for frame in (*frames, *FRAMES) for what in (0, 0x10, 0x20)
    ]
    return made
