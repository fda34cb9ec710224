"""DHCPv4 snooping (RFC 2131): the messages that the VM may send, and its lease (SAVI-DHCP, RFC 7513).

A guest may ask for itself only, as one client, of a server on its link, at a limited rate. A lease is
learned from the answer to a pending request, if the link itself confirms the answer:

* its destination is the broadcast address, or the VM's earlier leased address. Neither is routed to the VM
  from elsewhere, and no flow of the VM has such an answer, as DHCP goes to servers only;
* or it comes from a server that was confirmed so before, or that the user named.

Reads no clock; `now` is in seconds.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.guest_net.dhcp_wire import DHCPMessage
from vtl_tools.common.packet import address
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.services.fw.resolvers import Resolvers

LEASE_S: Final = 3600.0
"""Lease time in seconds of an acknowledgement without one, which RFC 2131 table 3 requires."""
PENDING_MAX: Final = 8
PENDING_S: Final = 120.0
"""Seconds that an answer may take; clients retransmit for 64 seconds (RFC 2131 section 4.1)."""
SERVERS_MAX: Final = 8
MESSAGES_PER_S: Final = 1.0
MESSAGES_AT_ONCE: Final = 20.0
DECLINES_PER_S: Final = 1 / 600
DECLINES_AT_ONCE: Final = 3.0
"""Rate limit of DHCPDECLINE: a server sets a declined address aside, so declines can empty its pool."""

_BROADCAST: Final = b"\xff" * 4
_HOPS, _GIADDR = 3, slice(24, 28)  # only relays write these
_ASKED: Final = frozenset(
    (dhcp_wire.DISCOVER, dhcp_wire.REQUEST, dhcp_wire.DECLINE, dhcp_wire.RELEASE, dhcp_wire.INFORM)
)
_RELAYED: Final = 82  # RFC 3046
_RAPID_COMMIT: Final = 80  # RFC 4039
_ONCE: Final = (
    dhcp_wire.REQUESTED_ADDRESS, dhcp_wire.MESSAGE_TYPE, dhcp_wire.SERVER_ID, dhcp_wire.CLIENT_ID,
)  # fmt: skip


class VMLease(NamedTuple):
    """A leased address, and when the lease ends."""

    address: bytes
    until: float


class _Pending(NamedTuple):
    may_lease: bool
    until: float


class DHCPv4Snooper:
    """Judges the DHCPv4 messages of one VM, and learns its lease.

    own: the VM's addresses, to which the lease is added. owns: returns whether an address is the VM's.
    servers: source addresses of servers that may lease; empty: any that the link confirms.
    is_learned: whether leases count, or only addresses that the user gave.
    """

    def __init__(
        self,
        own: set[bytes],
        owns: Callable[[bytes], bool],
        servers: Collection[bytes] = (),
        *,
        is_learned: bool = True,
    ) -> None:
        self.lease: VMLease | None = None
        self.client_id: bytes | None = None
        """The first client identifier that is not derived from the VM's Ethernet address."""
        self.met: OrderedDict[bytes, bytes] = OrderedDict()
        """Servers by identifier, and the source of their answers: themselves, or a relay."""
        self.resolvers = Resolvers()
        self._own, self._owns, self._is_learned = own, owns, is_learned
        self._servers = frozenset(servers)
        self._pending: OrderedDict[int, _Pending] = OrderedDict()
        self._messages = TokenBucket(MESSAGES_PER_S, MESSAGES_AT_ONCE)
        self._declines = TokenBucket(DECLINES_PER_S, DECLINES_AT_ONCE)

    # --- requests of the VM

    def refuse(self, net: IPv4, datagram: UDP, mac: bytes, now: float) -> str:
        """Return why the VM may not send a message to a server, or "". Raises Malformed."""
        message = DHCPMessage.at(datagram.payload)
        if _is_forged(message, datagram.payload, mac) or not self._is_client(message, mac):
            return "spoofed-dhcp"
        if net.dst != _BROADCAST and not self._is_server(net.dst):
            return "spoofed-dhcp"
        if not self._is_from_itself(net.src, message):
            return "spoofed-address"
        if not self._is_about_itself(message):
            return "spoofed-dhcp"
        if message.kind == dhcp_wire.DECLINE and not self._declines.take(now):
            return "dhcp-rate"
        if not self._messages.take(now):
            return "dhcp-rate"
        self._asked(message, mac, now)
        return ""

    def _is_client(self, message: DHCPMessage, mac: bytes) -> bool:
        """Return whether the client is the VM's usual one, by which servers find leases (section 4.2)."""
        told = message.options.get(dhcp_wire.CLIENT_ID)
        if told is None or told == _of_ethernet(mac):
            return True
        if len(told) == 7 and told[0] == dhcp_wire.ETHERNET:
            return False  # another's Ethernet address
        return len(told) > 1 and self.client_id in (None, told)

    def _is_server(self, octets: bytes) -> bool:
        if self._servers:
            return octets in self._servers
        return octets in self.met or octets in self.met.values()

    def _is_from_itself(self, src: bytes, message: DHCPMessage) -> bool:
        return address.is_unspecified(src) or self._owns(src) or self._is_asked_again(src, message)

    def _is_asked_again(self, octets: bytes, message: DHCPMessage) -> bool:
        """Return whether this asks to continue a lease from before this service started (section 4.3.2)."""
        again = message.kind == dhcp_wire.REQUEST and message.ciaddr == octets
        return again and self._is_learned and self.lease is None

    def _is_about_itself(self, message: DHCPMessage) -> bool:
        named = message.ciaddr
        if message.kind == dhcp_wire.DECLINE:
            named = message.address(dhcp_wire.REQUESTED_ADDRESS) or bytes(4)
        elif message.kind != dhcp_wire.RELEASE and address.is_unspecified(named):
            return True
        return self._owns(named) or self._is_asked_again(named, message)

    def _asked(self, message: DHCPMessage, mac: bytes, now: float) -> None:
        told = message.options.get(dhcp_wire.CLIENT_ID)
        if told is not None and told != _of_ethernet(mac):
            self.client_id = told
        if message.kind in (dhcp_wire.RELEASE, dhcp_wire.DECLINE):
            self.let_go()
        elif message.kind in (dhcp_wire.REQUEST, dhcp_wire.DISCOVER):
            may_lease = message.kind == dhcp_wire.REQUEST or _RAPID_COMMIT in message.options
            self._pending.pop(message.xid, None)
            self._pending[message.xid] = _Pending(may_lease, now + PENDING_S)
            if len(self._pending) > PENDING_MAX:
                self._pending.popitem(last=False)

    # --- answers of servers

    def observe(self, net: IPv4, datagram: UDP, mac: bytes | None, now: float) -> None:
        """Learn from an answer. Raises Malformed."""
        if datagram.sport != dhcp_wire.SERVER_PORT:
            return
        message = DHCPMessage.at(datagram.payload)
        asked = self._pending.get(message.xid)
        if message.op != dhcp_wire.BOOTREPLY or message.chaddr != mac or asked is None or asked.until < now:
            return
        if self._servers and net.src not in self._servers:
            return
        server = message.address(dhcp_wire.SERVER_ID) or net.src
        held = None if self.lease is None else self.lease.address
        by_link = net.dst == _BROADCAST or (net.dst == message.yiaddr and not self._owns(net.dst))
        if by_link:
            self.meet(server, net.src)
        elif net.src not in self._servers and (
            server not in self.met or net.src not in (server, self.met[server])
        ):
            return
        if message.kind == dhcp_wire.NAK and asked.may_lease:
            self.let_go()
        elif message.kind == dhcp_wire.ACK and asked.may_lease and (by_link or message.yiaddr == held):
            self._leased(message, now)
        elif message.kind == dhcp_wire.ACK and asked.may_lease and self._owns(message.yiaddr):
            self._named(message, now)  # of an address that the user gave

    def _leased(self, message: DHCPMessage, now: float) -> None:
        if not address.is_single_host(message.yiaddr):
            return
        until = self._named(message, now)
        if self._is_learned:
            self.take(VMLease(message.yiaddr, until))

    def _named(self, message: DHCPMessage, now: float) -> float:
        """Learn the resolvers of a lease. Return when it ends."""
        seconds = message.options.get(dhcp_wire.LEASE_TIME, b"")
        until = now + (int.from_bytes(seconds, "big") if len(seconds) == 4 else LEASE_S)
        self.resolvers.name(message.options.get(dhcp_wire.DNS, b""), 4, until)
        return until

    def take(self, lease: VMLease) -> None:
        """Set the lease, instead of an earlier one."""
        self.let_go()
        self.lease = lease
        self._own.add(lease.address)

    def leased(self) -> bytes | None:
        """Return the leased address."""
        return None if self.lease is None else self.lease.address

    def let_go(self) -> None:
        """Remove the lease."""
        if self.lease is not None:
            self._own.discard(self.lease.address)
        self.lease = None

    def forget(self) -> None:
        """Forget the VM: its lease, what it asked and the name it asked by. Its rates stay."""
        self.let_go()
        self.client_id = None
        self._pending.clear()

    def meet(self, server: bytes, source: bytes) -> None:
        """Record a server that the link confirms."""
        self.met[server] = source
        self.met.move_to_end(server)
        if len(self.met) > SERVERS_MAX:
            self.met.popitem(last=False)


def _of_ethernet(mac: bytes) -> bytes:
    """Return the client identifier derived from an Ethernet address (RFC 2132 section 9.14)."""
    return bytes((dhcp_wire.ETHERNET,)) + mac


def _is_forged(message: DHCPMessage, payload: Buffer, mac: bytes) -> bool:
    """Return whether a client would not send a message, or servers may read it in two ways."""
    if message.op != dhcp_wire.BOOTREQUEST or message.chaddr != mac or message.kind not in _ASKED:
        return True
    if payload[_HOPS] or any(payload[_GIADDR]) or _RELAYED in message.options:
        return True  # as relayed for another client
    if dhcp_wire.OVERLOAD in message.options:
        return True
    codes = dhcp_wire.codes(payload)
    return any(codes.count(code) > 1 for code in _ONCE)
