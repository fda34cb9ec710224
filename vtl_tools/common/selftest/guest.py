"""The guest of a self-test: a raw socket that sends any frame, with minimal TCP and DNS."""

import selectors
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

from scapy.layers.dns import DNS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from vtl_tools.common.packet import address
from vtl_tools.common.selftest.netns import Networks
from vtl_tools.common.selftest.packets import GATEWAY_MAC, IP4, IP6, MAC
from vtl_tools.common.selftest.station import Station, Wait
from vtl_tools.common.selftest.traffic import CarriedConnection, query

_ANSWER_S: Final = 10.0
_BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
_SENTINELS: Final = "10.254."


class RawGuest(Station):
    """A guest whose only network is the service."""

    def __init__(self, networks: Networks, selector: selectors.BaseSelector, wait: Wait) -> None:
        super().__init__(networks, networks.guest, "eth0", selector, wait)
        self._sentinels = 0
        self._port = 41000

    def answers(self) -> Counter[str]:
        """Count the answers since the last call, by kind; reset the connections that they opened."""
        got = [Ether(frame) for frame in self.take()]
        for pkt in got:
            if TCP in pkt and pkt[TCP].flags == "SA":  # else it would come again, as if for other traffic
                self._put(bytes(_reset(pkt)))
        return Counter(what for pkt in got if (what := _kind(pkt)))

    def is_heard(self, seconds: float) -> bool:
        """Return whether the service has processed all sent frames: it answers the last one last."""
        self._sentinels += 1
        asked = f"{_SENTINELS}{self._sentinels >> 8}.{self._sentinels & 255}"
        self._put(bytes(Ether(src=MAC, dst=_BROADCAST) / ARP(hwsrc=MAC, psrc=IP4, pdst=asked)))
        mac, octets = bytes.fromhex(GATEWAY_MAC.replace(":", "")), address.ip(asked)
        return self._wait(lambda: any(f[22:32] == mac + octets for f in self._got), seconds)

    def look_up(self, name: str) -> str | None:
        """Ask DNS for a name; return its address."""
        self._port += 1
        head = Ether(src=MAC, dst=GATEWAY_MAC) / IP(src=IP4, dst="10.0.2.2") / UDP(sport=self._port, dport=53)
        answer = self._ask(head / query(name), lambda pkt: DNS in pkt and pkt[UDP].dport == self._port)
        if answer is None or not answer[DNS].ancount:
            return None
        return str(answer[DNS].an[0].rdata)

    def call(self, call: CarriedConnection) -> bool:
        """Connect, send and receive; return whether all of it succeeded."""
        self._port += 1
        port = self._port
        net = IPv6(src=IP6, dst=call.target) if ":" in call.target else IP(src=IP4, dst=call.target)
        head = Ether(src=MAC, dst=GATEWAY_MAC) / net

        def segment(seq: int, ack: int, flags: str) -> Packet:
            return head.copy() / TCP(sport=port, dport=call.port, seq=seq, ack=ack, flags=flags, window=65000)

        def is_ours(pkt: Packet) -> bool:
            return TCP in pkt and pkt[TCP].dport == port

        opened = self._ask(segment(1, 0, "S"), is_ours)
        if opened is None or opened[TCP].flags != "SA":
            return False
        ack = opened[TCP].seq + 1
        said = segment(2, ack, "PA") / call.octets
        heard = self._ask(said, lambda pkt: is_ours(pkt) and len(bytes(pkt[TCP].payload).strip(b"\0")) > 0)
        self._put(bytes(segment(2 + len(call.octets), ack, "R")))
        return heard is not None

    def _ask(self, pkt: Packet, is_answer: Callable[[Packet], bool]) -> Packet | None:
        seen, found = len(self._got), list[Packet]()

        def answered() -> bool:
            nonlocal seen
            fresh, seen = self._got[seen:], len(self._got)
            found.extend(frame for octets in fresh if is_answer(frame := Ether(octets)))
            return bool(found)

        self._put(bytes(pkt))
        return found[0] if self._wait(answered, _ANSWER_S) else None


def _reset(pkt: Packet) -> Packet:
    """Return a reset for the connection of a SYN-ACK."""
    net, opened = pkt[IPv6] if IPv6 in pkt else pkt[IP], pkt[TCP]
    head = Ether(src=pkt.dst, dst=pkt.src) / type(net)(src=net.dst, dst=net.src)
    return head / TCP(sport=opened.dport, dport=opened.sport, seq=opened.ack, flags="R")


def _kind(pkt: Packet) -> str:
    """Return the kind of an answer; "" if it answers the guest's own requests, not the tested traffic."""
    if ARP in pkt:
        return "" if pkt[ARP].psrc.startswith(_SENTINELS) else "arp"
    if TCP in pkt:
        flags = pkt[TCP].flags
        return "rst" if flags.R else "syn-ack" if flags.S else "tcp"
    if ICMPv6ND_RA in pkt:
        return "router"
    if ICMPv6ND_NA in pkt:
        return "neighbour"
    if ICMP in pkt or (IPv6 in pkt and pkt[IPv6].nh == socket.IPPROTO_ICMPV6):
        return "icmp"
    if UDP in pkt:
        return {53: "dns", 67: "dhcp"}.get(pkt[UDP].sport, "udp")
    return "other"
