"""What a guest says to its gateway: DHCP, ARP and neighbour discovery.

Checked: Malformed and nothing else; a DHCP message that is read is read again from what encode() makes of it;
an answer is one sound frame of ours that fits a link, to who asked or to all; an address that is acknowledged
is of the network and none of ours; what is remembered stays bounded.
"""

from contextlib import suppress

from tests.fuzz.octets import Octets, blob
from tests.unit.guest_net.guest import IP, LINK_LOCAL, MAC, NOBODY6, Guest
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dhcp_wire as wire
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.dhcp import POOL_MAX, DHCPServer
from vtl_tools.common.guest_net.neighbours import KNOWN_MAX, NeighbourResponder
from vtl_tools.common.packet import build, nd
from vtl_tools.common.packet.packet import Packet

NETWORK = GuestAddresses()
GUEST = Guest(NETWORK)
FRAME_MAX = 700
STEPS_MAX = 8


def read(data: bytes) -> wire.DHCPMessage | None:
    """Read a message, and again what is made of it."""
    try:
        message = wire.DHCPMessage.at(data)
    except Malformed:
        return None
    for option in message.options:
        with suppress(Malformed):
            assert len(message.address(option) or b"") == 4
    assert 0 <= message.kind <= 255
    odd = {wire.PAD, wire.END, wire.OVERLOAD} & set(message.options)
    if not odd and all(len(value) <= 255 for value in message.options.values()):
        assert wire.DHCPMessage.at(message.encode()) == message
    return message


class Link:
    """A gateway, and what it has said."""

    def __init__(self) -> None:
        self.neighbours = NeighbourResponder(NETWORK, 0.0)
        self.server = DHCPServer(NETWORK, mac_of=self.neighbours.mac_of)
        self.now = 0.0

    def hear(self, frame: bytearray, complete: bool) -> None:
        if complete:
            with suppress(Malformed):
                Packet.at(frame).compute_ip_checksum()
                Packet.at(frame).compute_transport_checksum()
        for part in self.neighbours, self.server:
            before = bytes(frame)
            try:
                pkt = Packet.at(frame)
                answer = part.answer(pkt, self.now)
            except Malformed:
                continue
            assert bytes(frame) == before
            if answer is not None:
                self.check(pkt, Packet.at(answer))

    def check(self, asked: Packet, said: Packet) -> None:
        assert said.verify()
        assert said.eth.src == NETWORK.mac
        assert len(said.buf) < FRAME_MAX
        assert said.end == len(said.buf) or said.arp is not None
        if said.udp is None:
            assert said.eth.dst == asked.eth.src or said.eth.dst[0] & 1
            return
        message = wire.DHCPMessage.at(said.udp.payload)
        chaddr = wire.DHCPMessage.at(asked.udp.payload).chaddr
        assert message.chaddr == chaddr
        assert said.eth.dst in (chaddr, b"\xff" * 6)
        if message.kind in (wire.OFFER, wire.ACK) and any(message.yiaddr):
            assert said.ip.src == NETWORK.gateway
            number = int.from_bytes(message.yiaddr, "big")
            assert number in range(*(int(end) for end in (NETWORK.subnet[0], NETWORK.subnet[-1])))
            assert not NETWORK.is_ours(message.yiaddr)

    def step(self, take: Octets) -> None:
        what = take.number()
        self.now += take.number()
        if what & 1:
            self.hear(bytearray(take.blob()), complete=bool(what & 2))
        else:
            body = take.blob()
            if what & 2:  # a sound head, so that nearly all that is read are options
                body = wire.DHCPMessage(1, 7, MAC).encode()[:240] + body
            read(body)
            self.hear(bytearray(GUEST.datagram(body, src=take.take(4).ljust(4, b"\0")).buf), complete=True)
        assert len(self.neighbours._known) <= KNOWN_MAX
        assert len(self.server.leases) <= POOL_MAX


def one(data: bytes) -> None:
    take, link = Octets(data), Link()
    for _ in range(STEPS_MAX):
        if not take.left:
            break
        link.step(take)


def seeds() -> list[bytes]:
    told = build.nd_option(nd.SOURCE_LLADDR, MAC)
    packets = [
        GUEST.arp(NETWORK.gateway), GUEST.arp(IP), GUEST.solicit(NETWORK.link_local),
        GUEST.solicit(LINK_LOCAL, src=NOBODY6), GUEST.router_solicit(options=told),
    ]  # fmt: skip
    messages = [
        GUEST.dhcp(wire.DISCOVER, requested_address=IP, client_id=b"\1abc"),
        GUEST.dhcp(wire.REQUEST, requested_address=IP, server_id=NETWORK.gateway),
        GUEST.dhcp(wire.REQUEST, ciaddr=IP, src=IP), GUEST.dhcp(wire.INFORM, ciaddr=IP, src=IP),
        GUEST.dhcp(wire.DECLINE, requested_address=IP), GUEST.dhcp(wire.RELEASE, ciaddr=IP, src=IP),
    ]  # fmt: skip
    payloads = [bytes(pkt.udp.payload) for pkt in messages]
    made = [bytes((3, 1)) + blob(bytes(pkt.buf)) for pkt in [*packets, *messages]]
    made += [bytes((0, 1)) + blob(payload) + bytes(4) for payload in payloads]
    made += [bytes((2, 1)) + blob(payload[240:]) + bytes(4) for payload in payloads]
    return [*made, b"".join(made[-5:-2]), bytes((2, 0)) + blob(b"\x34\1\3" + bytes(9))]
