"""A target that never fails shows nothing: each notices a fault put in its way, by the inputs kept."""

import pytest

from tests.fuzz import run
from vtl_tools.common import socks
from vtl_tools.common.device import stream, vxlan
from vtl_tools.common.guest_net import dns
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.leases import LeaseTable
from vtl_tools.common.packet import derive, offload, quick
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.rules.rule import NO_RULE, Verdict
from vtl_tools.common.runtime import control
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.services.freeze import answers, qmp, state
from vtl_tools.services.freeze.stage import Freeze
from vtl_tools.services.fw import saved_state as memory
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.policy import Judgement, Policy, RuleTable
from vtl_tools.services.fw.tracker import Tracker
from vtl_tools.services.subnet.message import SubnetMessage
from vtl_tools.services.udt.transport.flow import MuxFlow


def changed(function, how):
    """A function whose result is changed."""

    def call(*args, **kwargs):
        return how(function(*args, **kwargs))

    return call


def reversed_data(data):
    return bytes(data)[::-1]


def misdirected(reply):
    return b"x" + reply[1:]


def to_nobody(header):
    return bytes(6) + header[6:]


def port_of_another(found):
    if found is None:
        return None
    start, protocol, parties, *rest = found
    return start, protocol, parties[:-1] + bytes((parties[-1] ^ 1,)), *rest


def no_timestamp(found):
    return found and (*found[:-2], quick.NO_OPTIONS, 0)


def one_octet_more(connection, *rest):
    connection.vm_ack += 1
    try:
        return ACK(connection, *rest)
    finally:
        connection.vm_ack -= 1


ACK = answers.ack
ARRIVED = MuxFlow.arrived
MESSAGE_AT = SubnetMessage.at
FAULTS = {
    "a header's checksum is not kept": ("layers", IPv4, "_resum", lambda view, old, new: None),
    "an answer goes to nobody": ("layers", derive, "_l2_back", changed(derive._l2_back, to_nobody)),
    "a checksum is written where its sender says": ("offload", offload, "bind", lambda frame: None),
    "segments overlap": ("offload", offload, "_sums", changed(offload._sums, lambda sums: sums[::-1])),
    "a port is misread": ("quick_readers", quick, "read", changed(quick.read, port_of_another)),
    "octets are read backwards": ("tcp_endpoint", Endpoint, "read", changed(Endpoint.read, reversed_data)),
    "a timestamp is not looked at": ("model", quick, "read", changed(quick.read, no_timestamp)),
    "a reply is not to the query": ("dns", dns.wire, "render", changed(dns.wire.render, misdirected)),
    "our own address is leased": ("gateway", LeaseTable, "offer", lambda *args: GuestAddresses().gateway),
    "the stream's beginning is lost": ("socks", socks.Client, "rest", b""),
    "every packet is allowed": (
        "firewall", Policy, "judge", lambda *args: Judgement(Verdict.ALLOW, NO_RULE),
    ),
    "the VM is whoever it says": ("firewall", Identity, "check", lambda *args: ""),
    "a new rule ends nothing": ("firewall", Tracker, "replace", lambda *args: ()),
    "the last rule judges": ("rules", RuleTable, "judge", lambda table, fields: table._caught),
    "an answer is no object": ("control", control, "result_of", lambda line, path: []),
    "what was learned is not told": ("state", memory, "_identity_lines", lambda learned, shift: ()),
    "a state is not what was kept": (
        "state", state, "_told", changed(state._told, lambda it: {**it, "vm_window": it["vm_window"] ^ 1}),
    ),
    "one octet more is acknowledged": ("freezer", answers, "ack", one_octet_more),
    "a VM that runs is spoken for": ("qmp", Freeze, "stop", lambda stage, now: {}),
    "a line has no end": ("qmp", qmp.Monitor, "_lose", lambda monitor: None),
    "a tag is not looked at": (
        "subnet", SubnetMessage, "at", classmethod(lambda cls, frame, key=None: MESSAGE_AT(frame)),
    ),
    "runts are frames": ("links", stream, "ETHERNET", 0),
    "every network is ours": ("links", vxlan.VxlanDevice, "_is_peer", lambda *args: True),
    "a flow's octets are mixed up": (
        "session", MuxFlow, "arrived", lambda flow, data, now: ARRIVED(flow, reversed_data(data), now),
    ),
    "a connection has no end": ("relay", RelayFlow, "wake", lambda *args: None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "owner", "attribute", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_target_notices_that(name, owner, attribute, fault, monkeypatch):
    target = run.target(name)
    inputs = [*(path.read_bytes() for path in run.kept(name)), *target.seeds()]
    monkeypatch.setattr(owner, attribute, fault)

    def run_all():
        for data in inputs:
            target.one(data)

    with pytest.raises(AssertionError):
        run_all()


def test_every_target_has_a_fault_to_notice():
    assert {name for name, *_ in FAULTS.values()} == set(run.TARGETS)
