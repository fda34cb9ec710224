"""The service in memory: what comes out at which port, what is answered, what is counted."""

import asyncio
import struct
import time
from contextlib import suppress

import pytest
from fw import IN, OUT, PEER, PEER_MAC, VM, VM_MAC, ends, policy, segment
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.guest_net.dhcp_wire import DHCPMessage
from vtl_tools.common.packet import build, icmp, vnet
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.fw import answers, question
from vtl_tools.services.fw.files import SentReader, pack
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.packet_log import KINDS_MAX
from vtl_tools.services.fw.parser import FILES_MAX
from vtl_tools.services.fw.stage import Firewall

TEXT = """
allow out tcp port 80
allow out udp port 53 log
reject out
allow in tcp port 22
reject in tcp port 23
deny in
"""


class Service:
    """A Firewall whose ports lead to lists."""

    def __init__(self, text=TEXT, **options):
        self.stage = Firewall(policy(text), "fw.rules", **options)
        self.verbs = self.stage.verbs()
        self.got, self.batches, self.events = ([], []), [], []
        for port in 0, 1:
            self.stage.out[port] = lambda batch, now, port=port: self.take(port, batch)
        self.stage.event = lambda name, **fields: self.events.append((name, fields))

    def take(self, port, batch):
        self.batches.append(batch)
        self.got[port].extend(bytes(frame) for frame in batch)

    def say(self, port, *frames, now=1000.0):
        """Hand over a batch; return what came out at the other port, and what at the same."""
        for out in self.got:
            out.clear()
        self.batches.clear()
        self.stage.on_batch(port, batch := Batch.of(frames), now)
        self.whole = self.batches == [batch]
        return list(self.got[1 - port]), list(self.got[port])


def udp(direction, sport, dport, payload=b"x", **more):
    return build.udp(**{**ends(direction), **more}, sport=sport, dport=dport, payload=payload)


def test_a_batch_in_which_all_pass_goes_on_whole():
    service = Service()
    frames = [segment(OUT, "S", 0), udp(OUT, 5000, 53)]
    assert service.say(0, *frames) == ([bytes(f) for f in frames], [])
    assert service.whole
    assert not service.stage.drops


def test_what_does_not_pass_is_taken_out_and_counted_by_reason():
    service = Service()
    good, bad = udp(OUT, 5000, 53), udp(OUT, 5000, 54, dst_mac=b"\xff" * 6)
    assert service.say(0, good, bad, good)[0] == [bytes(good)] * 2
    assert service.say(0, bytes(30), bytes(10))[0] == []
    assert service.stage.drops["rule"] == 2
    assert sum(service.stage.drops.values()) == 3


def test_answers_pass_without_a_rule_and_strangers_do_not():
    service = Service()
    service.say(0, segment(OUT, "S", 0))
    assert service.say(1, segment(IN, "S.", 0, 1))[0]
    assert not service.say(1, segment(IN, "S.", 0, 1, vm=40001))[0]


def test_reject_resets_tcp_towards_its_sender():
    service = Service()
    service.say(0, udp(OUT, 5000, 53))  # so that the VM's Ethernet address is known
    passed, answers = service.say(1, segment(IN, "S", 0, vm=23))
    assert passed == []
    (answer,) = map(Packet.at, map(bytearray, answers))
    assert answer.is_rst
    assert answer.verify()
    assert (answer.ip.src, answer.ip.dst, answer.eth.dst) == (VM, PEER, PEER_MAC)


def test_a_frame_for_another_machine_that_a_switch_flooded_is_not_answered_in_its_name():
    identity = Identity()
    service = Service(identity=identity)
    assert service.say(1, segment(IN, "S", 0, vm=23)) == ([], [])  # the VM is not known yet
    service.say(0, segment(OUT, "S", 0))
    assert identity.mac == VM_MAC
    assert service.say(1, segment(IN, ".", 5, 5, vm=23, dst_mac=b"\2\0\0\0\0\7")) == ([], [])
    assert len(service.say(1, segment(IN, "S", 0, vm=23))[1]) == 1


def test_a_connection_of_another_station_is_not_reset():
    """On a shared uplink, such as of the host itself, or of another VM."""
    service = Service()
    service.say(0, udp(OUT, 5000, 53))
    assert service.say(1, segment(IN, "S", 0, vm=23, dst_mac=b"\x02\0\0\0\0\x09")) == ([], [])
    assert service.stage.drops == {"rule": 1}


def test_a_frame_for_another_station_is_of_no_connection_and_uses_up_no_limit():
    service = Service("allow in tcp limit 1/h\ndeny any\n", identity=Identity(mac=VM_MAC))
    for port in range(5000, 5010):
        assert service.say(1, segment(IN, "S", 0, vm=port, dst_mac=b"\x02\0\0\0\0\x09")) == ([], [])
    assert service.stage.drops == {"other-station": 10}
    assert not len(service.stage.tracker.flows)
    assert service.say(1, segment(IN, "S", 0, vm=22))[0]


@pytest.mark.parametrize("six", [False, True])
def test_reject_tells_others_by_icmp(six):
    service = Service()
    _, answers = service.say(0, udp(OUT, 5000, 99, **ends(OUT, six)))
    (answer,) = map(Packet.at, map(bytearray, answers))
    unreachable = (icmp.V6_UNREACHABLE, icmp.V6_ADMIN_PROHIBITED) if six else (3, icmp.ADMIN_PROHIBITED)
    assert (answer.icmp.type, answer.icmp.code) == unreachable
    assert answer.ip.dst == ends(OUT, six)["src"]


def test_answers_of_a_flood_are_bounded():
    service = Service()
    answered = sum(len(service.say(0, *[udp(OUT, 5000, 99)] * 64)[1]) for _ in range(40))
    assert answered == 1000


def test_a_flood_of_strangers_takes_no_answer_from_the_vm():
    service = Service()
    for _ in range(40):
        service.say(1, *[segment(IN, "S", 0, vm=23)] * 64)
    assert service.say(0, udp(OUT, 5000, 99))[1]


def fragments(frame, at=8):
    """Both halves of an IPv4 packet."""
    net = Packet.at(bytearray(frame)).ipv4
    head, data = bytes(frame[: net.payload_off]), bytes(frame[net.payload_off : net.end])
    halves = []
    for word, piece in ((0x2000, data[:at]), (at // 8, data[at:])):
        half = bytearray(head + piece)
        half[net.off + 2 : net.off + 4] = (20 + len(piece)).to_bytes(2, "big")
        half[net.off + 6 : net.off + 8] = word.to_bytes(2, "big")
        made = Packet.at(half)
        made.compute_ip_checksum()
        halves.append(bytes(half))
    return halves


def test_fragments_pass_together_once_their_packet_is_allowed():
    service = Service()
    for port, passes in (53, True), (99, False):
        first, second = fragments(udp(OUT, 5000, port, bytes(64), identification=port))
        assert service.say(0, first)[0] == []
        assert service.say(0, second)[0] == ([first, second] if passes else [])
    assert service.stage.drops == {"rule": 2}


def test_a_dhcp_server_in_fragments_is_seen():
    service = Service("allow any", identity=Identity(VM_MAC, question_networks("10.0.0.5")))
    first, second = fragments(udp(OUT, 67, 68, bytes(64)))
    assert service.say(0, first, second)[0] == []
    assert service.stage.drops == {"rogue-dhcp": 2}


def question_networks(*texts):
    from ipaddress import ip_network

    return [ip_network(text) for text in texts]


def test_rules_are_counted_and_those_that_say_so_logged():
    service = Service()
    service.say(0, *[udp(OUT, 5000, 53)] * 3)
    rows = service.stage.status(1000.0)["rules"]
    text = "allow out udp port 53 log"
    assert rows == {"fw.rules:3": {"text": text, "packets": 3, "octets": 3 * 43}}
    ((name, fields),) = service.events
    assert name == "packet"
    assert fields == {
        "rule": "fw.rules:3", "direction": "out", "verdict": "allow", "reason": "new",
        "src_mac": "52:54:00:00:00:01", "dst_mac": "52:54:00:00:00:02", "ethertype": "0x0800",
        "src": "10.0.0.5", "dst": "192.0.2.1", "protocol": "udp", "sport": 5000, "dport": 53,
    }  # fmt: skip


def test_a_packet_that_comes_again_and_again_is_logged_once_a_minute_with_the_number():
    service, lines = Service("deny any log"), []
    service.stage.say = lines.append
    for port in range(5000, 5005):
        service.say(0, *[udp(OUT, port, 99)] * 64)
    assert len(service.events) == 1
    assert service.stage.deadline() == 1060.0
    service.stage.wake(1060.0)
    (_, first), (_, folded) = service.events
    assert (folded["repeats"], folded["period_s"]) == (5 * 64 - 1, 60.0)
    shared = ("rule", "direction", "verdict", "reason", "protocol", "src", "dst", "dport")
    assert {key: folded[key] for key in shared} == {key: first[key] for key in shared}
    line = "deny out udp 10.0.0.5{} 192.0.2.1:99 by fw.rules:1"
    assert lines == [line.format(":5000"), f"{line.format('')} (319 more in 60 s)"]


def test_a_connection_beyond_a_limit_is_logged_as_denied():
    service = Service("allow out udp port 53 limit 1/s log\ndeny any")
    service.say(0, udp(OUT, 5000, 53), udp(OUT, 5001, 53), udp(OUT, 5002, 53))
    assert [(told["verdict"], told["reason"]) for _, told in service.events] == [
        ("allow", "new"), ("deny", "limit-rate"),
    ]  # fmt: skip
    service.stage.on_stop(1001.0)
    assert (service.events[-1][1]["verdict"], service.events[-1][1]["repeats"]) == ("deny", 1)


def test_a_guest_that_sends_to_ever_new_ports_is_logged_at_a_rate_and_the_others_by_their_number():
    service, lines = Service("deny any log"), []
    service.stage.say = lines.append
    for start in range(0, 256, 64):
        service.say(0, *[udp(OUT, 5000, port) for port in range(start, start + 64)])
    assert len(service.events) == 100
    service.stage.wake(1060.0)
    assert len(service.events) == 101
    assert service.events[-1][1] == {
        "rule": "fw.rules:1", "direction": "out", "verdict": "deny", "reason": "rule", "protocol": "udp",
        "repeats": 156, "period_s": 60.0,
    }  # fmt: skip
    assert lines[-1] == "deny out udp packets that are not told one by one by fw.rules:1 (156 more in 60 s)"


def test_the_log_of_a_flood_of_kinds_is_bounded_and_counts_each_packet():
    service = Service("deny any log")
    total = 0
    for second in range(59):
        for half in range(2):
            ports = range((total := total + 64) - 64, total)
            service.say(0, *[udp(OUT, 5000, port % 60_000) for port in ports], now=1000.0 + second + half / 2)
    others = bytes(40), build.icmp_echo(**ends(OUT), identifier=7, sequence=1)
    service.say(0, *others, now=1059.0)
    total += len(others)
    shown = len(service.events)
    assert shown <= KINDS_MAX + 1
    service.stage.on_stop(1059.5)
    folded = sum(told["repeats"] for _, told in service.events[shown:])
    assert shown + folded == total


def test_a_flood_of_strangers_hides_nothing_of_the_vm_from_the_log():
    service = Service("deny any log")
    for _ in range(4):
        service.say(1, *[udp(IN, 5000, 99)] * 64)
    service.say(0, udp(OUT, 5000, 98))
    assert service.events[-1][1]["dport"] == 98


def test_pcap_keeps_what_a_rule_judged():
    kept = []
    text = "allow out udp port 53 pcap\ndeny any"
    service = Service(text, kept=lambda frame, now: kept.append(bytes(frame)))
    frame = udp(OUT, 5000, 53)
    service.say(0, frame, udp(OUT, 5000, 54), frame)
    assert kept == [bytes(frame)]


def upload(stage, text, file="new.rules", **more):
    with SealedFile.of(pack({file: text.encode()})) as sealed:
        return asyncio.run(stage.reload({"upload": sealed, "file": file, **more}))


def test_reload_ends_what_is_not_allowed_any_more_and_a_dry_run_nothing():
    service = Service()
    service.say(0, segment(OUT, "S", 0), udp(OUT, 5000, 53))
    told = upload(service.stage, "allow out udp\ndeny any", dry_run=True)
    assert told["names"] == ["out tcp 10.0.0.5:40000 192.0.2.1:80"]
    assert len(service.stage.tracker.flows) == 2
    assert upload(service.stage, "allow out udp\ndeny any")["ended"] == 1
    assert service.say(1, segment(IN, "S.", 0, 1))[0] == []
    assert service.stage.status(0.0)["policy"]["file"] == "new.rules"


def test_rules_with_an_error_change_nothing():
    service = Service()
    with pytest.raises(SpecError, match=r"new.rules:1:1: "):
        upload(service.stage, "alow out\n")
    assert service.stage.file == "fw.rules"


def test_flows_are_named_killed_and_explained():
    service = Service()
    service.say(0, segment(OUT, "S", 0))
    (flow,) = answers.flows(service.stage.tracker, {}, 1000.0)["flows"]
    assert flow["flow"] == "out tcp 10.0.0.5:40000 192.0.2.1:80"
    assert flow["rule"] == "fw.rules:2"
    words = flow["flow"].split()
    told = service.verbs["explain"]({"words": words})
    assert (told["rule"], told["text"]) == ("fw.rules:2", "allow out tcp port 80")
    assert told["known"] == flow["flow"]
    assert service.verbs["kill"]({"words": words}) == {"flow": flow["flow"]}
    with pytest.raises(VTLError, match="no such connection"):
        service.verbs["kill"]({"words": words})
    assert len(service.stage.tracker.flows) == 0


@pytest.mark.parametrize(
    "request_", [{}, {"words": "out"}, {"words": [1]}, {"words": []}, {"words": ["x"] * 9}]
)
def test_requests_that_mean_nothing_are_refused(request_):
    for verb in "kill", "explain":
        with pytest.raises(VTLError):
            Service().verbs[verb](request_)


@pytest.mark.parametrize(
    "text",
    [
        "out tcp 10.0.0.5:40000 1.2.3.4:443",
        "in udp [2001:db8::1]:5 [2001:db8::2]:53 vlan 7",
        "out icmp 10.0.0.5:7 1.2.3.4:7",
        "out 47 10.0.0.5 1.2.3.4",
    ],
)
def test_names_of_flows_are_read_back(text):
    from vtl_tools.common.rules.rule import Verdict
    from vtl_tools.services.fw.flow import Decision, Flow, Opening

    asked = question.read(text.split())
    opening = Opening(asked.direction, VM_MAC, PEER_MAC, asked.vlan)
    flow = Flow(asked.key(), Decision(Verdict.ALLOW, None, "known"), opening, None)
    assert question.name(flow) == text


@pytest.mark.parametrize(
    "text",
    ["out arp type 5", "out ethertype", "out ethertype 0x0800", "out ethertype 0x10000", "out arp from",
     "out arp from mac", "out arp from mac x", "out arp vlan 1 vlan 2", "out ethertype 0x",
     "out ethertype 0xg",
     "", "out", "off tcp 1.1.1.1:1 1.1.1.1:1", "out tcp 1.1.1.1 1.1.1.1", "out tcp ::1 1.1.1.1:5",
     "out tcp 1.1.1.1:1 1.1.1.1:70000", "out foo 1.1.1.1 1.1.1.1", "out tcp [::1]5 [::1]:5",
     "out icmp 1.1.1.1 1.1.1.2 type", "out icmp 1.1.1.1 1.1.1.2 type huge", "out icmp 1.1.1.1 1.1.1.2 a b"],
)  # fmt: skip
def test_what_is_no_packet_is_told(text):
    with pytest.raises(SpecError):
        question.read(text.split())


def test_files_that_are_sent_come_out_as_they_went_in():
    files = {"/a/b.rules": b"allow any", "\udcff": b"", "größe\n": bytes(100_000)}
    read = SentReader(b"".join(pack(files)))
    for name, octets in files.items():
        assert read(name, 1 << 20) == octets
        assert read(name, 3) == octets[:3]
    with pytest.raises(FileNotFoundError):
        read("c", 1)


@pytest.mark.parametrize(
    "packed",
    [b"x", bytes(9), b"\xff" * 8, struct.pack("!II", 1, 5) + b"abc",
     struct.pack("!II", 5000, 0) + b"x" * 5000, bytes(8) * (FILES_MAX + 1)],
    ids=["short head", "half a head", "sizes without end", "cut off", "long name", "many"],
)  # fmt: skip
def test_damaged_files_are_refused(packed):
    with pytest.raises(VTLError, match="damaged"):
        SentReader(packed)


@given(st.binary(max_size=100))
def test_any_octets_are_files_or_damaged(packed):
    with suppress(VTLError):
        SentReader(packed)


@pytest.mark.parametrize(("text", "learns"), [("allow any", True), ("allow out\ndeny in", False)])
def test_only_a_lease_that_passes_is_learned(text, learns):
    service = Service(text, identity=Identity())
    asked = DHCPMessage(dhcp_wire.BOOTREQUEST, 7, VM_MAC, options={53: bytes((dhcp_wire.REQUEST,))})
    given = DHCPMessage(dhcp_wire.BOOTREPLY, 7, VM_MAC, yiaddr=VM, options={53: bytes((dhcp_wire.ACK,))})
    assert service.say(0, udp(OUT, 68, 67, asked.encode(), src=bytes(4), dst=b"\xff" * 4))[0]
    assert bool(service.say(1, udp(IN, 67, 68, given.encode(), dst=b"\xff" * 4))[0]) is learns
    assert bool(service.say(0, segment(OUT, "S", 0))[0]) is learns
    assert service.stage.drops["spoofed-address"] == (not learns)


def test_a_reload_from_standard_input_leaves_the_file_for_the_next_reload():
    service = Service()
    for file, named in ("other.rules", "other.rules"), ("<stdin>", "other.rules"):
        upload(service.stage, "allow\n", file)
        told = service.stage.status(0)["policy"]
        assert (told["file"], told["named_file"]) == (file, named)


def test_of_two_reloads_at_once_the_second_is_refused():
    stage = Service().stage

    async def both():
        with sent("allow any") as one, sent("deny any") as two:
            first = asyncio.create_task(stage.reload({"upload": one, "file": "new.rules"}))
            await asyncio.sleep(0)
            with pytest.raises(VTLError, match="under way"):
                await stage.reload({"upload": two, "file": "new.rules"})
            return await first

    def sent(text):
        return SealedFile.of(pack({"new.rules": text.encode()}))

    assert asyncio.run(both())["rules"] == 1
    assert stage.tracker.policy.rules[0].text == "allow any"


def test_what_a_checksum_would_be_written_over_is_judged_as_it_will_be():
    """A port that the rules allow, which the sum makes another when the frame is sent."""
    frame = bytearray(udp(OUT, 5000, 53))
    frame[:10] = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, 0, 0, 0, 34, 2)
    service = Service()
    passed, (answer,) = service.say(0, frame)
    assert passed == []
    assert Packet.at(bytearray(answer)).icmp.is_error
    frame[1] = vnet.GSO_UDP_L4
    assert service.say(0, frame) == ([], [])
    assert service.stage.drops == {"rule": 1, "malformed-vnet": 1}


MANY = "allow out udp port 53\nallow in udp port 53\ndeny any"


def many(count):
    """A firewall of many connections: half of them out, by the first rule, half of them in."""
    service = Service(MANY)
    for number in range(count):
        direction = IN if number % 2 else OUT
        port = 53 if direction is OUT else 5000
        ports = {"sport": 1000 + number, "dport": 53}
        service.say(0 if direction is OUT else 1, build.udp(**ends(direction), **ports, payload=b"x" * port))
    return service


def listed(service, **request):
    """The flows of all answers, and how many answers there were."""
    found, start, rounds = [], 0, 0
    while start is not None:
        told = service.verbs["flows"]({**request, "start": start})
        found += told["flows"]
        start, rounds = told["next"], rounds + 1
    return found, rounds


def test_flows_come_in_answers_of_bounded_size():
    found, rounds = listed(many(2500))
    assert rounds == 3
    assert len({flow["flow"] for flow in found}) == 2500
    assert len(many(5).verbs["flows"]({})["flows"]) == 5


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        ({"rule": "1"}, 50), ({"rule": "fw.rules:2"}, 50), ({"rule": "other:1"}, 0), ({"rule": "3"}, 0),
        ({"address": "10.0.0.0/24"}, 100), ({"address": "192.0.2.1"}, 100), ({"address": "192.0.2.2"}, 0),
        ({"address": "::/0"}, 0), ({"rule": "1", "address": "10.0.0.5"}, 50),
    ],
)  # fmt: skip
def test_flows_are_listed_by_rule_and_by_address(request_, count):
    assert len(listed(many(100), **request_)[0]) == count


@pytest.mark.parametrize(
    "request_",
    [{"rule": 1}, {"address": 1}, {"address": "x"}, {"address": "10.0.0.1/8"}, {"start": -1}, {"start": "0"},
     {"start": 1 << 40}],
)  # fmt: skip
def test_a_list_that_cannot_be_meant_is_refused(request_):
    with pytest.raises(SpecError):
        Service().verbs["flows"](request_)


LINK = """
deny out from mac 52:54:00:00:00:09
allow out ethertype 0x88b5 vlan 7
allow arp
deny in icmp6 type neighbour-solicitation
allow out udp port 53 limit 2 connections per source
allow out udp port 54 limit 1/h burst 2
deny any
"""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("out tcp 10.0.0.5:1 1.2.3.4:80 from mac 52:54:00:00:00:09", 2),
        ("out ethertype 0x88b5 vlan 7 to mac 52:54:00:00:00:09", 3),
        ("out ethertype 34997 vlan 7", 3),
        ("out ethertype 0x88b5", 8),
        ("in arp", 4),
        ("in icmp [fe80::1] [ff02::1] type neighbour-solicitation", 5),
        ("out udp 10.0.0.5:1 1.2.3.4:53", 6),
    ],
)
def test_explain_takes_what_is_on_the_wire_too(words, line):
    assert Service(LINK).verbs["explain"]({"words": words.split()})["rule"] == f"fw.rules:{line}"


def test_neighbour_discovery_is_explained_as_it_is_judged():
    told = Service(LINK).verbs["explain"]({"words": ["out", "icmp", "fe80::1", "fe80::2", "type", "136"]})
    assert (told["rule"], told["text"]) == ("(built in):1", "allow ARP and neighbour discovery")


def test_explain_tells_what_limits_leave():
    service = Service(LINK)

    def left(port):
        words = f"out udp 10.0.0.5:9 192.0.2.1:{port}".split()
        return service.verbs["explain"]({"words": words}).get("left")

    assert (left(53), left(54), left(55)) == ({"connections": 2}, {"new": 2}, None)
    now = time.monotonic()
    service.say(0, udp(OUT, 1, 53), udp(OUT, 1, 54), now=now)
    assert (left(53), left(54)) == ({"connections": 1}, {"new": 1})
    service.say(0, *[udp(OUT, port, dport) for port in (2, 3) for dport in (53, 54)], now=now)
    assert (left(53), left(54)) == ({"connections": 0}, {"new": 0})


@pytest.mark.parametrize(
    ("frame", "line"),
    [
        (udp(OUT, 5000, 99), "deny out udp 10.0.0.5:5000 192.0.2.1:99"),
        (udp(OUT, 5000, 99, vlan=7), "deny out udp 10.0.0.5:5000 192.0.2.1:99 vlan 7"),
        (udp(OUT, 5000, 99, **ends(OUT, True)), "deny out udp [2001:db8::5]:5000 [2001:db8:1::1]:99"),
        (build.icmp_echo(**ends(OUT), identifier=7, sequence=1, reply=True),
         "deny out icmp 10.0.0.5 192.0.2.1 type 0 code 0"),
        (vnet.NONE + PEER_MAC + VM_MAC + b"\x88\xb5" + bytes(46),
         "deny out ethertype 0x88b5 from mac 52:54:00:00:00:01 to mac 52:54:00:00:00:02"),
    ],
)  # fmt: skip
def test_a_line_of_the_log_says_what_explain_takes(frame, line):
    service, lines = Service("deny any log"), []
    service.stage.say = lines.append
    service.say(0, frame)
    assert lines == [f"{line} by fw.rules:1"]
    told = service.verbs["explain"]({"words": line.split()[1:]})
    assert (told["verdict"], told["rule"]) == ("deny", "fw.rules:1")
