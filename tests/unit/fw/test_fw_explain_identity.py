"""The identity as an operator sees it: `explain` says what happens to frames; the warnings are few."""

import logging
from ipaddress import ip_network

import pytest
from fw import PEER, PEER6, PEER_MAC, VM, VM6, VM_MAC, policy
from fw_guest import LOCAL6, NOBODY, announced, claims, lease, segment, solicit
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.host import outlet
from vtl_tools.common.host.log_lines import LogHandler
from vtl_tools.common.packet import address, build, icmp, ip, nd
from vtl_tools.common.packet.address import format_ip, format_mac
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.services.fw import client
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.identity_report import CAUSES
from vtl_tools.services.fw.stage import Firewall

NEXT_MAC, GROUP = address.mac("52:54:00:00:00:09"), b"\1\0\x5e\0\0\1"
TESTED, FOREIGN6 = address.ip("2001:db8::7e"), address.ip("2001:db8::bad")
ALL = "allow any vlan any\nallow any"
DHCP_PORTS = {4: 67, 16: 547}


def fresh():
    return Identity()


def learned():
    vm = Identity(follows=True)
    vm.meet("interface 7 1")
    lease(vm)
    vm.observe(announced(), 0.0)
    assert claims(vm, VM6)
    assert claims(vm, LOCAL6)
    assert vm.refuse(solicit(TESTED), 0.0) == ""
    return vm


def awaited():
    vm = learned()
    vm.meet("interface 7 2")
    return vm


def told():
    return Identity(VM_MAC, [ip_network("10.0.0.0/30"), ip_network("2001:db8::/64")])


def partly_told():
    vm = Identity(None, [ip_network("10.0.0.5/32")])
    assert vm.refuse(segment(VM), 0.0) == ""
    return vm


STATES = [fresh, learned, awaited, told, partly_told]
V4 = [VM, NOBODY, bytes(4), b"\xff" * 4, b"\xe0\0\0\1", address.ip("10.0.0.2")]
V6 = [VM6, LOCAL6, TESTED, FOREIGN6, bytes(16), address.ALL_NODES]
PORTS = st.sampled_from([67, 68, 546, 547, 53, 4000])


@st.composite
def packets(draw):
    """A packet as an operator describes it, its addresses, what it is, and what makes a frame of it."""
    mac = draw(st.sampled_from([None, VM_MAC, NEXT_MAC, GROUP, bytes(6)]))
    vlan = draw(st.sampled_from([None, 7]))
    kind = draw(st.sampled_from(["tcp", "udp", "udp", "icmp", "icmp", "47", "arp", "ethertype 0x88b5"]))
    tail = ["vlan", "7"] * (vlan is not None)
    if mac is not None and any(mac):  # zeros stand for an address that is not given
        tail += ["from", "mac", format_mac(mac)]
    tags = None if vlan is None else (vlan,)
    if kind == "arp" or kind.startswith("ethertype"):
        spa = draw(st.sampled_from(V4))

        def link(own):
            if kind == "arp":
                return build.arp(src_mac=own, dst_mac=PEER_MAC, sha=own, spa=spa, tpa=PEER, vlan=tags)
            return bytearray(NONE + build.ethernet(own, PEER_MAC, 0x88B5, tags) + bytes(46))

        return ["out", *kind.split(), *tail], mac, b"", (kind, 0), link
    src = draw(st.sampled_from(V4 + V6))
    dst = PEER if len(src) == 4 else draw(st.sampled_from([PEER6, address.ALL_NODES]))
    ports = draw(PORTS), draw(PORTS)
    message, code = draw(st.sampled_from([8, 13, 128, 131, 143, 133, 134, 135, 136, 137])), 0
    target = draw(st.sampled_from(V6))
    ends = [format_ip(src), format_ip(dst)]
    if kind in ("tcp", "udp"):
        ends = [
            f"[{end}]:{port}" if ":" in end else f"{end}:{port}"
            for end, port in zip(ends, ports, strict=True)
        ]
    if kind == "icmp":
        tail = ["type", str(message), "code", str(code), *tail]

    def frame(own):
        l2 = build.ethernet(own, PEER_MAC, 0x0800 if len(src) == 4 else 0x86DD, tags)
        if kind in ("tcp", "udp"):
            make = build.tcp if kind == "tcp" else build.udp
            flags = {"flags": 2} if kind == "tcp" else {}
            return make(
                src_mac=own,
                dst_mac=PEER_MAC,
                src=src,
                dst=dst,
                sport=ports[0],
                dport=ports[1],
                vlan=tags,
                **flags,
            )
        if kind == "icmp":
            number = ip.ICMP if len(src) == 4 else ip.ICMPV6
            head = icmp.ICMP.HEADER.pack(message, code, 0, 0)
            return build.over_ip(
                l2, src, dst, number, head, {133: b"", 134: bytes(8)}.get(message, target), ttl=255
            )
        return bytearray(NONE + l2 + build.ip_header(src, dst, 47, 8) + bytes(8))

    about = {"udp": ports[1], "icmp": message}.get(kind, 0)
    return ["out", kind, *ends, *tail], mac, src, (kind, about), frame


def judged_by_contents(src, about):
    kind, number = about
    if kind == "arp":
        return True
    if kind == "udp":
        return number == DHCP_PORTS[len(src)]
    return kind == "icmp" and len(src) == 16 and number in nd.MESSAGES


@given(st.sampled_from(STATES), packets())
def test_explain_says_of_the_identity_what_happens_to_a_frame(state, packet):
    words, mac, src, about, frame = packet
    identity = state()
    stage = Firewall(policy(ALL), "fw.rules", identity=identity, link="vmnet1")
    out = []
    stage.out[1] = lambda batch, now: out.extend(batch)
    before = identity.learned(), identity.former
    told = stage.verbs()["explain"]({"words": words})
    assert (identity.learned(), identity.former) == before, "a question changes nothing"
    if mac is None or not any(mac):
        mac = identity.mac or identity.former or VM_MAC
    stage.on_batch(0, Batch.of([frame(mac)]), 2.0)
    refused = CAUSES & stage.drops.keys()
    verdict = told["identity"]["verdict"]
    assert (verdict == "contents") <= judged_by_contents(src, about)
    if verdict == "deny":
        assert refused == {told["identity"]["reason"]}
        assert (told["verdict"], out) == ("deny", [])
    elif verdict == "allow":
        assert not refused
        assert (told["verdict"] == "allow") == bool(out)


def explained(identity, *words):
    stage = Firewall(policy("allow out tcp\ndeny any"), identity=identity, link="vmnet1")
    return list(client.explanation(stage.verbs()["explain"]({"words": list(words)})))


def test_an_operator_reads_first_that_an_address_is_not_the_vms():
    lines = explained(learned(), "out", "tcp", "10.0.0.9:5", "192.0.2.1:80")
    has = "it has 10.0.0.5 by dhcp, 2001:db8::5 by nd, fe80::5054:ff:fe00:1 by nd"
    assert lines[0] == f"deny: 10.0.0.9 is not an address of the VM ({has})"
    assert lines[1].startswith("    spoofed-address: ")
    assert len(lines) == 2


def test_an_operator_reads_what_gave_the_vm_an_address_and_then_the_rule():
    lines = explained(learned(), "out", "tcp", "10.0.0.5:5", "192.0.2.1:80")
    assert lines == [
        "identity: 10.0.0.5 is the VM's by dhcp",
        "fw.rules:1: allow out tcp",
        "    matches: allow",
    ]
    lines = explained(
        Identity(VM_MAC, [ip_network("10.0.0.0/24")]), "out", "tcp", "10.0.0.5:5", "192.0.2.1:80"
    )
    assert lines[0] == "identity: 10.0.0.5 is the VM's by option"


def test_an_address_that_is_being_tested_is_not_the_vms_yet():
    (line, _) = explained(learned(), "out", "tcp", f"[{format_ip(TESTED)}]:5", "[2001:db8:1::1]:80")
    assert line.startswith(
        "deny: 2001:db8::7e is not an address of the VM yet: the network is asked whose it is"
    )


def test_where_no_identity_is_judged_explain_says_so():
    lines = explained(None, "out", "tcp", "10.0.0.9:5", "192.0.2.1:80")
    assert lines[0] == "identity: not judged: the service runs with --spoofing"
    assert not any(
        "identity" in line for line in explained(fresh(), "in", "tcp", "192.0.2.1:80", "10.0.0.9:5")
    )


# --- warnings


def claim(sha, spa):
    return build.arp(src_mac=VM_MAC, dst_mac=PEER_MAC, sha=sha, spa=spa, tpa=PEER)


class Told:
    """A firewall between a VM and nothing, and what it told."""

    def __init__(self, identity):
        self.stage = Firewall(policy(ALL), identity=identity, link="vmnet1")
        self.events = []
        self.stage.event = lambda name, **fields: self.events.append((name, fields))

    def say(self, *frames, now):
        self.stage.on_batch(0, Batch.of(frames), now)


def test_one_line_and_one_event_a_minute_and_cause(caplog):
    told = Told(learned())
    with caplog.at_level(logging.WARNING):
        for second in range(50):
            told.say(
                segment(NOBODY),
                segment(address.ip(f"10.0.1.{second}")),
                segment(VM, src_mac=NEXT_MAC),
                now=5.0 + second,
            )
        assert [record.message.split(": ")[1] for record in caplog.records] == [
            "spoofed-address",
            "spoofed-mac",
        ]
        assert [fields["reason"] for _, fields in told.events] == ["spoofed-address", "spoofed-mac"]
        told.stage.wake(65.0)
        assert [record.message for record in caplog.records][2:] == [
            "vmnet1: spoofed-address: 99 more in 60 s",
            "vmnet1: spoofed-mac: 49 more in 60 s",
        ]
        assert [fields["repeats"] for _, fields in told.events[2:]] == [99, 49]
    assert told.stage.drops == {"spoofed-address": 100, "spoofed-mac": 50}


def test_no_cause_hides_another_in_the_log_of_a_service(monkeypatch):
    lines = []
    monkeypatch.setattr(outlet, "say", lambda fd, line: lines.append(line.partition("vtl-fw: ")[2]))
    handler, logger = LogHandler("vtl-fw"), logging.getLogger("vtl_tools.services.fw.identity_report")
    handler.serve()
    logger.addHandler(handler)
    try:
        told = Told(learned())
        for _ in range(3):
            told.say(segment(NOBODY), segment(VM, src_mac=NEXT_MAC), now=5.0)
        told.stage.wake(65.0)
    finally:
        logger.removeHandler(handler)
    assert [line.split(": ")[1] for line in lines[:2]] == ["spoofed-address", "spoofed-mac"]
    assert lines[2:] == [
        "vmnet1: spoofed-address: 2 more in 60 s",
        "vmnet1: spoofed-mac: 2 more in 60 s",
    ]


@pytest.mark.parametrize(
    ("frame", "why", "refused"),
    [
        (segment(VM, src_mac=NEXT_MAC), "spoofed-mac", format_mac(NEXT_MAC)),
        (segment(NOBODY), "spoofed-address", "10.0.0.9"),
        (claim(VM_MAC, NOBODY), "spoofed-arp", "10.0.0.9"),
        (claim(NEXT_MAC, VM), "spoofed-arp", format_mac(NEXT_MAC)),
        (solicit(PEER6), "spoofed-nd", format_ip(PEER6)),
    ],
)  # fmt: skip
def test_a_warning_names_what_was_refused_and_what_helps(frame, why, refused, caplog):
    told = Told(learned())
    told.say(frame, now=5.0)
    ((name, fields),) = told.events
    assert (name, fields["reason"], fields["refused"], fields["mac"]) == (
        "identity",
        why,
        refused,
        format_mac(VM_MAC),
    )
    assert fields["addresses"][0] == "10.0.0.5"
    (record,) = caplog.records
    assert record.message == f"vmnet1: {why}: {fields['text']}; {fields['remedy']}"
    assert refused in record.message
    status = told.stage.status(8.0)["refused"]
    assert (status["refused"], status["last_refused"], status["last_cause"]) == (1, refused, why)
    assert (status["last_text"], status["last_ago_s"]) == (fields["text"], 3.0)


def test_what_a_vm_that_behaves_sends_warns_nobody(caplog):
    told = Told(Identity())
    vm = told.stage.identity
    lease(vm)
    vm.observe(announced(), 0.0)
    assert claims(vm, VM6)
    told.say(segment(VM), segment(VM6, PEER6), now=5.0)
    assert (told.events, caplog.records) == ([], [])
    assert told.stage.status(8.0)["refused"] == {"refused": 0}


def test_the_frames_of_the_vm_before_warn_nobody_when_another_came(caplog):
    """They waited in the receive buffer; and the new VM's first ones may be among them."""
    told = Told(learned())
    told.stage.drain = lambda port: told.say(segment(VM, src_mac=NEXT_MAC), now=5.0)
    told.stage.on_occupant(0, "interface 7 2", 5.0)
    assert told.events == []
    told.say(segment(VM, src_mac=NEXT_MAC), now=5.1)
    assert [fields["reason"] for _, fields in told.events] == ["replaced", "spoofed-address"]


def test_a_frame_that_comes_before_the_news_of_its_vm_warns_nobody():
    told = Told(learned())
    told.stage.occupant = lambda port: "interface 7 2"
    told.say(segment(VM, src_mac=NEXT_MAC), now=5.0)
    assert told.events == []
    told.stage.on_occupant(0, "interface 7 2", 5.0)
    told.say(segment(VM, src_mac=NEXT_MAC), now=5.1)
    assert told.events[0][1]["reason"] == "replaced"
