"""scapy as the oracle of octets: they build and we read, we build and they read, both edit and agree."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers import inet, inet6, l2

from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.address import format_ip, format_mac
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import encode_options

U8, U16, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
MAC = st.binary(min_size=6, max_size=6)
DATA = st.binary(max_size=60)
IP4 = st.binary(min_size=4, max_size=4)
IP6 = st.binary(min_size=16, max_size=16)
ENDS = st.one_of(st.tuples(IP4, IP4), st.tuples(IP6, IP6))
TAGS = st.one_of(st.none(), U16, st.tuples(U16, U16))
OPTIONS = st.builds(
    encode_options,
    mss=st.none() | U16,
    window_scale=st.none() | st.integers(0, 14),
    sack_permitted=st.booleans(),
    timestamps=st.none() | st.tuples(U32, U32),
    sack=st.lists(st.tuples(U32, U32), max_size=1),
)
EXAMPLES = settings(deadline=None, max_examples=200, derandomize=True)
"""Some are enough: scapy takes milliseconds for each."""

VNET = bytes(10)
LINK = l2.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # or scapy asks the network for one


def their_link(src_mac: bytes, dst_mac: bytes, tags: int | tuple[int, ...] | None) -> l2.Ether:
    link = l2.Ether(src=format_mac(src_mac), dst=format_mac(dst_mac))
    tags = () if tags is None else (tags,) if isinstance(tags, int) else tags
    for number, tci in enumerate(tags):
        tag = l2.Dot1Q if number == len(tags) - 1 else l2.Dot1AD
        link /= tag(prio=tci >> 13, dei=tci >> 12 & 1, vlan=tci & 0xFFF)
    return link


def their_ip(src: bytes, dst: bytes, **fields):
    names = {"src": format_ip(src), "dst": format_ip(dst)}
    if len(src) == 4:
        return inet.IP(**names, **fields)
    if "ttl" in fields:
        fields["hlim"] = fields.pop("ttl")
    if "tos" in fields:
        fields["tc"] = fields.pop("tos")
    return inet6.IPv6(**names, **fields)


def frame_of(theirs) -> bytearray:
    return bytearray(VNET + bytes(theirs))


def recomputed(frame: bytearray) -> bytes:
    """The frame after scapy has forgotten and made anew its checksums."""
    theirs = l2.Ether(bytes(frame[10:]))
    for layer in (inet.IP, inet.TCP, inet.UDP, inet.ICMP):
        if layer in theirs:
            theirs[layer].chksum = None
    theirs.clear_cache()
    layer = theirs
    while layer:
        if hasattr(layer, "cksum"):
            layer.cksum = None
        layer = layer.payload
    return VNET + bytes(theirs)


@EXAMPLES
@given(ENDS, MAC, MAC, TAGS, U16, U16, U32, U32, U8, U16, OPTIONS, DATA, U8, U8, U16)
def test_we_build_tcp_as_scapy_does(
    ends, src_mac, dst_mac, tags, sport, dport, seq, ack, flags, window, options, payload, ttl, tos, urgent
):
    theirs = (
        their_link(src_mac, dst_mac, tags)
        / their_ip(*ends, ttl=ttl, tos=tos, **({"id": 0} if len(ends[0]) == 4 else {}))
        / inet.TCP(sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window, urgptr=urgent,
                   dataofs=5 + len(options) // 4)
        / (options + payload)
    )  # fmt: skip
    fields = {
        "src_mac": src_mac, "dst_mac": dst_mac, "src": ends[0], "dst": ends[1], "sport": sport,
        "dport": dport, "seq": seq, "ack": ack, "flags": flags, "window": window, "options": options,
        "payload": payload, "vlan": tags, "ttl": ttl, "tos": tos, "urgent": urgent,
    }  # fmt: skip
    ours = build.tcp(**fields)
    assert ours == frame_of(theirs)
    partial = build.tcp(**fields, partial=True)
    assert Packet.at(partial).compute_transport_checksum()
    assert partial == ours


@EXAMPLES
@given(ENDS, MAC, MAC, TAGS, U16, U16, DATA)
def test_we_build_udp_as_scapy_does(ends, src_mac, dst_mac, tags, sport, dport, payload):
    ident = {"id": 0} if len(ends[0]) == 4 else {}
    theirs = their_link(src_mac, dst_mac, tags) / their_ip(*ends, **ident)
    theirs /= inet.UDP(sport=sport, dport=dport) / payload
    fields = {
        "src_mac": src_mac, "dst_mac": dst_mac, "src": ends[0], "dst": ends[1], "sport": sport,
        "dport": dport, "payload": payload, "vlan": tags,
    }  # fmt: skip
    ours = build.udp(**fields)
    assert ours == frame_of(theirs)
    partial = build.udp(**fields, partial=True)
    assert Packet.at(partial).compute_transport_checksum()
    assert partial == ours


@EXAMPLES
@given(ENDS, MAC, MAC, TAGS, U16, U16, DATA, st.booleans())
def test_we_build_echoes_as_scapy_does(ends, src_mac, dst_mac, tags, identifier, sequence, payload, reply):
    if len(ends[0]) == 4:
        message = inet.ICMP(type=0 if reply else 8, id=identifier, seq=sequence)
        net = their_ip(*ends, id=0)
    else:
        message = inet6.ICMPv6EchoRequest(type=129 if reply else 128, id=identifier, seq=sequence)
        net = their_ip(*ends)
    ours = build.icmp_echo(
        src_mac=src_mac, dst_mac=dst_mac, src=ends[0], dst=ends[1], identifier=identifier, sequence=sequence,
        payload=payload, reply=reply, vlan=tags,
    )  # fmt: skip
    assert ours == frame_of(their_link(src_mac, dst_mac, tags) / net / message / payload)


@EXAMPLES
@given(MAC, MAC, TAGS, st.sampled_from((1, 2)), MAC, IP4, MAC, IP4)
def test_arp_is_the_same_both_ways(src_mac, dst_mac, tags, oper, sha, spa, tha, tpa):
    ours = build.arp(
        src_mac=src_mac, dst_mac=dst_mac, oper=oper, sha=sha, spa=spa, tha=tha, tpa=tpa, vlan=tags
    )
    theirs = their_link(src_mac, dst_mac, tags) / l2.ARP(
        op=oper, hwsrc=format_mac(sha), psrc=format_ip(spa), hwdst=format_mac(tha), pdst=format_ip(tpa)
    )
    assert ours == frame_of(theirs)
    found = Packet.at(frame_of(theirs)).arp
    assert (found.oper, found.sha, found.spa, found.tha, found.tpa) == (oper, sha, spa, tha, tpa)


@EXAMPLES
@given(IP6, IP6, MAC, MAC, IP6.filter(any), st.booleans(), st.booleans(), st.booleans())
def test_neighbour_discovery_is_the_same_both_ways(
    src, dst, src_mac, dst_mac, target, router, solicited, override
):
    link, net = their_link(src_mac, dst_mac, None), their_ip(src, dst, hlim=255)
    advert = inet6.ICMPv6ND_NA(tgt=format_ip(target), R=router, S=solicited, O=override)
    advert /= inet6.ICMPv6NDOptDstLLAddr(lladdr=format_mac(src_mac))
    ends = {"src_mac": src_mac, "dst_mac": dst_mac, "src": src, "dst": dst, "target": target}
    flags = {"router": router, "solicited": solicited, "override": override}
    assert build.neighbor_advert(**ends, lladdr=src_mac, **flags) == frame_of(link / net / advert)
    found = Packet.at(frame_of(link / net / advert)).nd
    assert (found.router, found.solicited, found.override) == (router, solicited, override)
    assert (found.target, found.target_lladdr) == (target, src_mac)

    solicit = inet6.ICMPv6ND_NS(tgt=format_ip(target))
    if any(src):
        solicit /= inet6.ICMPv6NDOptSrcLLAddr(lladdr=format_mac(src_mac))
    assert build.neighbor_solicit(**ends) == frame_of(link / net / solicit)
    found = Packet.at(frame_of(link / net / solicit)).nd
    assert (found.target, found.source_lladdr) == (target, src_mac if any(src) else None)


@EXAMPLES
@given(U8, st.booleans(), st.booleans(), U16, U32, U32, U32, IP6, st.integers(0, 128), U32, U32)
def test_we_read_router_advertisements(
    hops, managed, other, life, reach, retrans, mtu, prefix, size, valid, preferred
):
    theirs = LINK / inet6.IPv6(src="fe80::1", dst="ff02::1", hlim=255)
    theirs /= inet6.ICMPv6ND_RA(
        chlim=hops, M=managed, O=other, routerlifetime=life, reachabletime=reach, retranstimer=retrans
    )
    theirs /= inet6.ICMPv6NDOptMTU(mtu=mtu)
    theirs /= inet6.ICMPv6NDOptPrefixInfo(
        prefix=format_ip(prefix), prefixlen=size, L=1, A=0, validlifetime=valid, preferredlifetime=preferred
    )
    pkt = Packet.at(frame_of(theirs))
    found = pkt.nd
    assert (found.cur_hop_limit, found.managed, found.other) == (hops, managed, other)
    assert (found.router_lifetime, found.reachable_time, found.retrans_timer) == (life, reach, retrans)
    assert found.mtu_option == mtu
    assert found.prefixes == [(prefix, size, 0x80, valid, preferred)]
    assert pkt.verify()


@EXAMPLES
@given(IP4, IP4, U8, U16, st.integers(0, 7), st.integers(0, 0x1FFF), U8, st.booleans(), U16, U16, DATA)
def test_we_read_every_field_of_ipv4(src, dst, tos, ident, flags, frag, ttl, options, sport, dport, payload):
    theirs = LINK / their_ip(src, dst, tos=tos, id=ident, flags=flags, frag=frag, ttl=ttl)
    if options:
        theirs[inet.IP].options = [inet.IPOption_NOP(), inet.IPOption_RR(routers=["1.2.3.4"])]
    theirs /= inet.UDP(sport=sport, dport=dport) / payload
    frame = frame_of(theirs)
    pkt, again = Packet.at(frame), l2.Ether(bytes(theirs))[inet.IP]
    found = pkt.ip
    assert (found.ihl, found.tos, found.total_length) == (again.ihl, tos, again.len)
    assert (found.identification, found.fragment_offset, found.ttl) == (ident, frag, ttl)
    assert (found.dont_fragment, found.more_fragments) == (flags >> 1 & 1, flags & 1)
    assert (found.protocol, found.checksum, found.src, found.dst) == (17, again.chksum, src, dst)
    assert [kind for kind, _ in found.options()] == ([7] if options else [])
    assert (pkt.udp is None) == (frag > 0)
    if pkt.udp:
        assert (pkt.udp.sport, pkt.udp.dport, pkt.udp.length) == (sport, dport, 8 + len(payload))
        assert bytes(pkt.payload) == payload


EXTENSIONS = (
    inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(4))]),
    inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(20))]),
    inet6.IPv6ExtHdrRouting(addresses=["2001:db8::7", "2001:db8::8"], segleft=2),
    inet6.IPv6ExtHdrFragment(offset=0, m=0, id=5),
)


@EXAMPLES
@given(
    IP6,
    IP6,
    IP6,
    U8,
    st.integers(0, 2**20 - 1),
    U8,
    st.sets(st.integers(0, 3)),
    st.booleans(),
    U16,
    U16,
    DATA,
)
def test_we_walk_ipv6_extensions(src, dst, other, tc, label, hlim, headers, first, sport, dport, payload):
    theirs = LINK / their_ip(src, dst, tc=tc, fl=label, hlim=hlim)
    if first:
        theirs /= inet6.IPv6ExtHdrHopByHop(options=[inet6.PadN(optdata=bytes(4))])
    for header in headers:
        theirs /= EXTENSIONS[header].copy()
    theirs /= inet.TCP(sport=sport, dport=dport) / payload
    frame = frame_of(theirs)
    pkt = Packet.at(frame)
    found = pkt.ip
    assert (found.traffic_class, found.flow_label, found.hop_limit) == (tc, label, hlim)
    assert (found.src, found.dst, found.payload_length) == (src, dst, len(frame) - 64)
    assert len(list(found.extensions())) == len(headers) + first
    assert (pkt.tcp.sport, pkt.tcp.dport, bytes(pkt.payload)) == (sport, dport, payload)
    assert pkt.verify()
    pkt.ip.dst = pkt.ip.src = other
    pkt.tcp.seq = 99
    assert pkt.verify()
    assert frame == recomputed(frame)


@EXAMPLES
@given(ENDS, U16, U16, OPTIONS, DATA)
def test_we_read_tcp_options_as_scapy_does(ends, sport, dport, options, payload):
    frame = build.tcp(
        src_mac=bytes(6), dst_mac=bytes(6), src=ends[0], dst=ends[1], sport=sport, dport=dport, seq=1, ack=2,
        flags=tcp.SYN, window=3, options=options, payload=payload,
    )  # fmt: skip
    theirs = l2.Ether(bytes(frame[10:]))[inet.TCP]
    told = dict(theirs.options)
    found = Packet.at(frame).tcp
    assert (theirs.sport, theirs.dport, theirs.seq, theirs.ack, theirs.flags, theirs.window) == (
        sport, dport, 1, 2, "S", 3,
    )  # fmt: skip
    assert (found.mss, found.window_scale) == (told.get("MSS"), told.get("WScale"))
    assert found.sack_permitted == ("SAckOK" in told)
    assert found.timestamps == told.get("Timestamp")
    assert found.sack == ([told["SAck"]] if "SAck" in told else [])
    assert found.header_length == theirs.dataofs * 4


EDITS = {
    "ip.src": None,
    "ip.dst": None,
    "ip.ttl": U8,
    "ip.tos": U8,
    "ip.identification": U16,
    "ip.dont_fragment": st.integers(0, 1),
    "ip.flow_label": st.integers(0, 2**20 - 1),
    "transport.sport": U16,
    "transport.dport": U16,
    "tcp.seq": U32,
    "tcp.ack": U32,
    "tcp.flags": U8,
    "tcp.window": U16,
    "tcp.urgent": U16,
    "tcp.timestamps": st.tuples(U32, U32),
    "tcp.mss": U16,
    "tcp.window_scale": st.integers(0, 14),
    "icmp.identifier": U16,
    "icmp.sequence": U16,
    "icmp.code": U8,
    "icmp.rest": U32,
}


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
@EXAMPLES
@given(data=st.data())
def test_an_edit_leaves_what_scapy_recomputes(kind, partial, data):
    src, dst = data.draw(ENDS)
    family = IP4 if len(src) == 4 else IP6
    ends = {"src_mac": bytes(6), "dst_mac": bytes(6), "src": src, "dst": dst, "vlan": data.draw(TAGS)}
    payload = data.draw(DATA)
    if kind == "icmp":
        partial = False
        frame = build.icmp_echo(**ends, identifier=data.draw(U16), sequence=data.draw(U16), payload=payload)
    elif kind == "udp":
        frame = build.udp(
            **ends, sport=data.draw(U16), dport=data.draw(U16), payload=payload, partial=partial
        )
    else:
        options = encode_options(mss=1460, window_scale=1, timestamps=(1, 2))
        frame = build.tcp(
            **ends,
            sport=data.draw(U16),
            dport=data.draw(U16),
            options=options,
            payload=payload,
            partial=partial,
        )
    pkt = Packet.at(frame)
    for name in data.draw(st.lists(st.sampled_from(sorted(EDITS)), min_size=1, max_size=6)):
        layer, field = name.split(".")
        view = getattr(pkt, layer)
        if view is not None and hasattr(view, field):
            value = data.draw(family if EDITS[name] is None else EDITS[name], label=name)
            setattr(view, field, value)
            assert getattr(view, field) == value
    if data.draw(st.booleans()):
        pkt.swap()
    if partial:
        pkt.compute_transport_checksum()
    else:
        assert pkt.verify()
    if pkt.icmp is None or pkt.icmp.is_echo:
        assert frame == recomputed(frame)
