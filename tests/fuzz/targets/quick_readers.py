"""The quick reader of headers and its users, against the views: they agree on all that both can read.

Checked of packet/quick.py, tcp/wire.py, freeze/headers.py and subnet/headers.py: Malformed and nothing else;
addresses, ports, numbers, options and data are those of the views; every ordinary frame is read, and no
other; a frame that a capture cut behind its headers tells the same as the whole one; the endpoint takes every
TCP segment that the views read; a frame that is called bound is left alone by bind().
"""

from contextlib import suppress

from tests.fuzz.frames import FRAMES
from tests.fuzz.octets import Octets
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, ip, offload, quick, tcp
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.packet import PORTS, Packet
from vtl_tools.common.tcp import wire
from vtl_tools.services.freeze import headers
from vtl_tools.services.subnet import headers as shortcut


def views(frame: bytes) -> Packet | None:
    """Read a packet by the views; None if they refuse it."""
    try:
        pkt = Packet.at(frame)
        _ = pkt.transport, pkt.vlans, pkt.nd
    except Malformed:
        return None
    return pkt


def is_segment(pkt: Packet | None) -> bool:
    return pkt is not None and pkt.tcp is not None and not pkt.is_fragment


def endpoint(frame: bytes, pkt: Packet | None) -> None:
    try:
        found = wire.parse(frame)
    except Malformed as err:
        assert err.what == wire.SOURCE_ROUTE or pkt is None, "the endpoint refuses what the views read"
        return
    if found is None:
        assert not is_segment(pkt), "a segment is taken for something else"
        return
    if found is None:
        assert not is_segment(pkt), "the endpoint takes a sound segment for none"
        return
    assert is_segment(pkt), "the endpoint takes what is no segment"
    net, seen = pkt.ip, pkt.tcp
    assert found.flow == net.src + net.dst + PORTS.pack(seen.sport, seen.dport)
    assert (found.seq, found.ack, found.flags) == (seen.seq, seen.ack, seen.flags)
    assert (found.window, found.urgent) == (seen.window, seen.urgent if seen.flags & tcp.URG else 0)
    assert bytes(found.data) == bytes(seen.payload)
    assert found.length == len(seen.payload)
    kinds = [kind for kind, _ in seen.options()]
    if kinds.count(tcp.TIMESTAMPS) < 2:
        assert found.stamps == seen.timestamps
    assert wire.is_intact(frame) or not pkt.verify()


def length_at(found: headers.SegmentHeader) -> int:
    return 2 if headers.address_size(found.key) == 4 else 4


def overhearer(frame: bytes, pkt: Packet | None) -> None:
    try:
        found = headers.parse(frame, True)
    except Malformed:
        return
    if found.flags & tcp.SYN:
        options = headers.syn_options(frame, found)
        assert options.scale is None or 0 <= options.scale <= 14
    headers.is_intact(frame, found)
    assert len(headers.ethernet(frame, found)) == len(headers.ethernet_back(frame, found))
    if (
        pkt is None
        or found.end > len(frame)
        or not int.from_bytes(frame[found.l3 + length_at(found) :][:2], "big")
    ):
        return  # cut short, or with lengths that only who has the whole frame can refuse
    net, seen = pkt.ip, pkt.tcp
    assert net is not None
    assert seen is not None
    tags = bytes(frame[22 : pkt.l3_off - 2])
    assert found.key == net.src + net.dst + PORTS.pack(seen.sport, seen.dport) + tags
    assert (found.seq, found.ack, found.flags, found.window) == (seen.seq, seen.ack, seen.flags, seen.window)
    assert found.length == seen.seg_len
    assert (found.l3, found.l4, found.end) == (net.off, seen.off, seen.end)
    if [kind for kind, _ in seen.options()].count(tcp.TIMESTAMPS) < 2:
        assert (found.tsval, found.tsecr) == (seen.timestamps or (None, None))
    if not frame[0] & 3 and not net.is_routed:
        assert headers.is_intact(frame, found) == pkt.verify()
    assert headers.parse(frame[: seen.payload_off], True) == found
    assert headers.parse(frame, False).key[: len(net.src)] == net.dst


def is_ordinary(pkt: Packet | None) -> bool:
    """Say by the views whether a frame is one that the quick reader has to know."""
    if pkt is None or pkt.vlans or pkt.is_fragment or (pkt.tcp is None and pkt.udp is None):
        return False
    net = pkt.ip
    headers = net.payload_off - net.off
    lengths = net.total_length if isinstance(net, IPv4) else net.payload_length
    return lengths != 0 and headers == (20 if isinstance(net, IPv4) else 40)


def told(headers: quick.Headers | None) -> quick.Headers | None:
    """Cut the start of a frame at the Ethertype: each reader returns as much of it as costs it least."""
    return (headers[0][: quick.KIND], *headers[1:]) if headers is not None else None


def ordinary(frame: bytes, pkt: Packet | None) -> None:
    found = told(quick.read(frame))
    octet_by_octet = quick.unpack_octets(frame)
    assert told(octet_by_octet if octet_by_octet[7] else None) == found
    if found is None:
        assert not is_ordinary(pkt), "an ordinary frame is not read"
        return
    assert is_ordinary(pkt), "the views do not call it ordinary"
    start, protocol, parties, seq, ack, flags, window, l4, data, end, tsval, tsecr = found
    net, inner = pkt.ip, pkt.transport
    assert (start, protocol) == (bytes(frame[: quick.KIND]), net.protocol)
    assert quick.split(parties) == (net.src, net.dst, inner.sport, inner.dport)
    assert quick.split(quick.reverse(parties)) == (net.dst, net.src, inner.dport, inner.sport)
    assert (l4, data, end) == (inner.off, inner.payload_off, net.end)
    if protocol == ip.UDP:
        assert (seq, ack, flags, window, tsval, tsecr) == (0, 0, 0, 0, quick.NO_OPTIONS, 0)
    else:
        assert (seq, ack, flags, window) == (inner.seq, inner.ack, inner.flags, inner.window)
        if tsval == quick.OTHER_OPTIONS:
            assert inner.payload_off > inner.off + 20
        else:
            assert (tsval, tsecr) == (inner.timestamps or (quick.NO_OPTIONS, 0))
    for cut in data, data + 1, len(frame):
        part = frame[:cut]
        assert told(quick.read(part, whole=False)) == found, "a frame that is cut short tells something else"
        assert told(quick.read(part)) == (found if cut >= end else None), "the end of a packet is not missed"
    assert quick.read(frame[: data - 1], whole=False) is None
    if offload.is_bound(frame, found):
        made = bytearray(frame)
        offload.bind(made)
        assert made == frame


def short_way(frame: bytes, pkt: Packet | None) -> None:
    head = frame[: shortcut.HEAD]
    shortcut.key(head)
    shortcut.arp_sender(head)
    ends = shortcut.ends(head)
    is_neighbour = shortcut.is_neighbour_discovery(head)
    if ends is None:
        return
    hops = shortcut.hops(head, memoryview(frame))
    largest = shortcut.largest(memoryview(frame))
    if pkt is None or pkt.ip is None or pkt.vlans:
        return
    net = pkt.ip
    assert ends == (net.src, net.dst)
    assert hops in (0, net.ttl)
    hidden = pkt.ipv6 is not None and pkt.ipv6.fragment is not None  # where no router looks
    assert hidden or not (hops and net.is_routed), "a source route takes the short way"
    with suppress(Malformed):
        made = bytearray(frame)
        offload.bind(made)
        assert largest >= offload.max_frame(made) - 14, "a segment is larger than what was judged to fit"
    if pkt.nd is not None and net.payload_off == shortcut.L3 + 40:
        assert is_neighbour
    if hops > 1:
        sent, right = bytearray(frame), pkt.verify()
        shortcut.hop(memoryview(sent), head, b"\2\0\0\0\0\7")
        gone = Packet.at(sent)
        assert (gone.ip.ttl, gone.eth.dst) == (net.ttl - 1, b"\2\0\0\0\0\7")
        assert gone.verify() == right, "the header's checksum does not follow the hop"
        assert not address.is_unspecified(gone.eth.dst)


def one(data: bytes) -> None:
    take = Octets(data)
    how, frame = take.number(), take.rest()
    if how & 1:
        made = bytearray(frame)
        with suppress(Malformed):
            Packet.at(made).compute_ip_checksum()
            Packet.at(made).compute_transport_checksum()
        frame = bytes(made)
    pkt = views(frame)
    endpoint(frame, pkt)
    overhearer(frame, pkt)
    ordinary(frame, pkt)
    if len(frame) >= 24:
        short_way(frame, pkt)


def seeds() -> list[bytes]:
    return [bytes((how,)) + frame for frame in FRAMES for how in (0, 1)]
