"""A guest of the tests: it makes the frames that real ones send."""

from vtl_tools.common.guest_net import dhcp_wire as wire
from vtl_tools.common.packet import address, arp, build, nd
from vtl_tools.common.packet.packet import Packet

MAC = address.mac("52:54:00:00:00:01")
OTHER = address.mac("52:54:00:00:00:02")
IP = address.ip("10.0.2.15")
LINK_LOCAL = address.link_local(MAC)
NOBODY4, NOBODY6 = bytes(4), bytes(16)


class Guest:
    """Says things as one station; each method returns the packet that it sends."""

    def __init__(self, network, mac=MAC, vlan=None):
        self.network, self.mac, self.vlan = network, mac, vlan

    def arp(self, target, *, sender=IP, oper=arp.REQUEST, dst=address.BROADCAST, sha=None):
        frame = build.arp(
            src_mac=self.mac, dst_mac=dst, oper=oper, sha=sha or self.mac, spa=sender, tpa=target,
            vlan=self.vlan,
        )  # fmt: skip
        return Packet.at(frame)

    def solicit(self, target, *, src=LINK_LOCAL, dst=None):
        dst = dst or address.solicited_node(target)
        frame = build.neighbor_solicit(
            src_mac=self.mac, dst_mac=address.multicast_mac(dst), src=src, dst=dst, target=target,
            vlan=self.vlan,
        )  # fmt: skip
        return Packet.at(frame)

    def router_solicit(self, *, src=LINK_LOCAL, options=b""):
        frame = build.nd_message(
            src_mac=self.mac, dst_mac=address.multicast_mac(address.ALL_ROUTERS), src=src,
            dst=address.ALL_ROUTERS, kind=nd.ROUTER_SOLICIT, body=bytes(4), options=options, vlan=self.vlan,
        )  # fmt: skip
        return Packet.at(frame)

    def dhcp(self, kind, *, src=NOBODY4, dst=b"\xff" * 4, ciaddr=NOBODY4, flags=0, xid=7, **options):
        """options: by the names of dhcp_wire, as requested_address=..."""
        said = {wire.MESSAGE_TYPE: bytes((kind,))}
        said |= {getattr(wire, name.upper()): data for name, data in options.items()}
        message = wire.DHCPMessage(wire.BOOTREQUEST, xid, self.mac, flags, ciaddr=ciaddr, options=said)
        return self.datagram(message.encode(), src=src, dst=dst)

    def datagram(self, payload, *, src=NOBODY4, dst=b"\xff" * 4):
        mac = address.BROADCAST if dst == b"\xff" * 4 else self.network.mac
        frame = build.udp(
            src_mac=self.mac, dst_mac=mac, src=src, dst=dst, sport=68, dport=67, payload=payload,
            vlan=self.vlan,
        )  # fmt: skip
        return Packet.at(frame)


def said(frame):
    """The packet of an answer; its checksums are right."""
    assert frame is not None
    pkt = Packet.at(frame)
    assert pkt.verify()
    return pkt
