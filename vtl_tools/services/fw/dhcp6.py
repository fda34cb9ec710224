"""DHCPv6 snooping (RFC 8415): one DUID, few associations, and releases of the VM's own leases only.

Reads no clock; `now` is in seconds.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.services.fw.dhcp4 import MESSAGES_AT_ONCE, MESSAGES_PER_S, PENDING_MAX, PENDING_S
from vtl_tools.services.fw.resolvers import Resolvers

CLIENT_PORT: Final = 546
SERVER_PORT: Final = 547
SERVERS: Final = address.ip("ff02::1:2")
"""All relay agents and servers of the link (section 7.1)."""
DUID_MAX: Final = 130
"""Maximum octets of a DUID (section 11.1)."""
IAS_MAX: Final = 8
"""Maximum identity associations of one VM during its life."""
LEASES_MAX: Final = 16

SOLICIT, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, DECLINE, INFORMATION = 1, 3, 4, 5, 6, 7, 8, 9, 11
_ASKED: Final = frozenset((SOLICIT, REQUEST, CONFIRM, RENEW, REBIND, RELEASE, DECLINE, INFORMATION))
_GIVING_BACK: Final = (RELEASE, DECLINE)

_DNS: Final = 23  # RFC 3646
REFRESH_S: Final = 86_400
"""Seconds that what a server says counts, if no lease says otherwise (section 21.23)."""
_CLIENT_ID, _IA_NA, _IA_TA, _IAADDR, _IA_PD, _IAPREFIX = 1, 3, 4, 5, 25, 26
_RELAYED: Final = frozenset((9, 18, 37, 38))  # only relays write these
_IAS: Final = {_IA_NA: 16, _IA_TA: 8, _IA_PD: 16}
"""Offset of an association's options within its own option."""

IA = tuple[int, int]
"""The type of an association and its IAID: each type has its own IAIDs (section 12)."""


@dataclass(slots=True)
class DHCPv6Message:
    """The fields of a message that matter here. leased: address or prefix, and its valid seconds."""

    kind: int
    xid: bytes
    duids: list[bytes] = field(default_factory=list)
    ias: list[IA] = field(default_factory=list)
    leased: list[tuple[bytes, int]] = field(default_factory=list)
    is_relayed: bool = False
    resolvers: bytes = b""

    @classmethod
    def at(cls, data: Buffer) -> Self:
        """Parse a UDP payload. Raises Malformed, and nothing else."""
        if len(data) < 4:
            raise Malformed("dhcp6", len(data))
        made = cls(data[0], bytes(data[1:4]))
        for code, at, end in _options(data, 4, len(data)):
            if code == _CLIENT_ID:
                made.duids.append(bytes(data[at:end]))
            elif code in _IAS:
                inner = at - 4 + _IAS[code]
                if inner > end:
                    raise Malformed("dhcp6.ia", at)
                made.ias.append((code, int.from_bytes(data[at : at + 4], "big")))
                made.leased += _leases(data, inner, end)
            elif code == _DNS:
                made.resolvers = bytes(data[at:end])
            elif code in _RELAYED:
                made.is_relayed = True
        return made


class DHCPv6Snooper:
    """Judges the DHCPv6 messages of one VM. The caller judges their source address."""

    def __init__(self, resolvers: Resolvers | None = None) -> None:
        self.resolvers = Resolvers() if resolvers is None else resolvers
        self.duid: bytes | None = None
        """The first DUID that the VM used."""
        self.ias: dict[IA, None] = {}
        self.leases: OrderedDict[bytes, float] = OrderedDict()
        """Addresses, and prefixes as 17 octets, with the time at which they end."""
        self._pending: OrderedDict[bytes, float] = OrderedDict()
        self._messages = TokenBucket(MESSAGES_PER_S, MESSAGES_AT_ONCE)

    def refuse(self, net: IPv6, datagram: UDP, now: float) -> str:
        """Return why the VM may not send a message to a server, or "". Raises Malformed."""
        message = DHCPv6Message.at(datagram.payload)
        if net.dst != SERVERS and not address.is_link_local(net.dst):
            return "spoofed-dhcp"
        if message.kind not in _ASKED or message.is_relayed or not self._is_client(message):
            return "spoofed-dhcp"
        if len(self.ias.keys() | set(message.ias)) > IAS_MAX:
            return "spoofed-dhcp"
        if message.kind in _GIVING_BACK and any(lease not in self.leases for lease, _ in message.leased):
            return "spoofed-dhcp"
        if not self._messages.take(now):
            return "dhcp-rate"
        if message.duids:
            self.duid = message.duids[0]
        self.ias.update(dict.fromkeys(message.ias))
        self._pending[message.xid] = now + PENDING_S
        self._pending.move_to_end(message.xid)
        if len(self._pending) > PENDING_MAX:
            self._pending.popitem(last=False)
        if message.kind in _GIVING_BACK:
            for lease, _ in message.leased:
                self.leases[lease] = now
        return ""

    def _is_client(self, message: DHCPv6Message) -> bool:
        if not message.duids:
            return message.kind == INFORMATION and not message.ias  # section 18.2.6
        duid = message.duids[0]
        return len(message.duids) == 1 and 2 < len(duid) <= DUID_MAX and self.duid in (None, duid)

    def observe(self, net: IPv6, datagram: UDP, now: float) -> None:
        """Learn from an answer of the link. Raises Malformed."""
        if datagram.sport != SERVER_PORT or not address.is_link_local(net.src):
            return
        message = DHCPv6Message.at(datagram.payload)
        if message.kind != REPLY or message.duids != [self.duid]:
            return
        if self._pending.get(message.xid, now) <= now:
            return
        for lease, valid_s in message.leased:
            self.leases[lease] = now + valid_s
            self.leases.move_to_end(lease)
        lasts_s = max((valid_s for _, valid_s in message.leased), default=REFRESH_S)
        self.resolvers.name(message.resolvers, 16, now + lasts_s)
        for lease in list(self.leases)[:-LEASES_MAX]:
            self.leases[lease] = now

    def deadline(self) -> float | None:
        """Return when the first lease ends; None: never."""
        return min(self.leases.values(), default=None)

    def ended(self, now: float) -> list[bytes]:
        """Remove and return the leases that have ended."""
        over = [lease for lease, until in self.leases.items() if until <= now]
        for lease in over:
            del self.leases[lease]
        return over

    def forget(self) -> None:
        """Forget the VM: its leases, what it asked and the names it asked by. Its rate stays."""
        self.duid = None
        self.ias.clear()
        self.leases.clear()
        self._pending.clear()

    def is_leased(self, octets: bytes, now: float) -> bool:
        """Return whether an address is leased to the VM."""
        return self.leases.get(octets, now) > now


def _options(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Iterate over options as (code, start of its data, end of its data) (section 21.1)."""
    while at < end:
        if at + 4 > end:
            raise Malformed("dhcp6.option", at)
        code, size = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
        at += 4
        if at + size > end:
            raise Malformed("dhcp6.option", at)
        yield code, at, at + size
        at += size


def _leases(data: Buffer, at: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Iterate over the addresses and prefixes of an association (sections 21.6 and 21.22)."""
    for code, start, stop in _options(data, at, end):
        if code == _IAADDR and stop - start >= 24:
            yield bytes(data[start : start + 16]), int.from_bytes(data[start + 20 : start + 24], "big")
        elif code == _IAPREFIX and stop - start >= 25:
            yield bytes(data[start + 8 : start + 25]), int.from_bytes(data[start + 4 : start + 8], "big")
        elif code in (_IAADDR, _IAPREFIX):
            raise Malformed("dhcp6.ia", start)
