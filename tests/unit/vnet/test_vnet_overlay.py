"""The stage of vtl-vnet against frames that say of themselves what will not be sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet import build, vnet
from vtl_tools.services.vnet.adapting import AdaptSettings
from vtl_tools.services.vnet.stage import Overlay

A, B = (bytes.fromhex(f"02000000000{n}") for n in (1, 2))


def came(frame: bytearray, rule: str) -> tuple[list[int], Overlay]:
    """Return the ports at which a frame of the first comes out."""
    overlay, seen = Overlay(["vm1", "vm2", "far"], None, None), []
    for port in range(3):
        overlay.out[port] = lambda batch, now, port=port: seen.extend([port] * batch.count)
    overlay.add_rule(rule)
    overlay.on_batch(0, Batch.of([frame]), 0.0)
    return seen, overlay


def datagram() -> bytearray:
    ends = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    return build.udp(
        src_mac=A, dst_mac=B, src=ends[0], dst=ends[1], sport=1, dport=2, payload=b"\xf5\xfd" + bytes(8)
    )


def test_no_checksum_is_written_over_the_address_that_a_rule_judged() -> None:
    frame = datagram()
    assert came(bytearray(frame), "to 10.0.0.2 via far")[0] == [2]
    # The kernel would write the second half of the destination when the frame is sent.
    frame[: vnet.VNET] = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, 0, 0, 0, 14, 18)
    seen, overlay = came(frame, "to 10.0.0.2 via far")
    assert seen == []
    assert overlay.drops == {"malformed": 1}


def test_a_rule_judges_the_address_that_a_checksum_makes() -> None:
    ends = bytes(15) + b"\x01", bytes(15) + b"\x02"
    frame = build.udp(src_mac=A, dst_mac=B, src=ends[0], dst=ends[1], sport=1, dport=2, payload=bytes(8))
    frame[: vnet.VNET] = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, 0, 0, 0, 34, 18)
    seen, overlay = came(frame, "to ::2 via far")
    assert seen == [1, 2], "the destination is another one"
    assert not overlay.drops


@pytest.mark.parametrize("kind", [vnet.GSO_TCPV4, vnet.GSO_TCPV6])
def test_a_super_segment_of_another_protocol_is_dropped(kind: int) -> None:
    frame = datagram()
    frame[: vnet.VNET] = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, kind, 42, 4, 34, 6)
    seen, overlay = came(frame, "to 10.0.0.2 via far")
    assert seen == []
    assert overlay.drops == {"malformed": 1}


TAGS = st.sampled_from([b"", bytes.fromhex("81000007"), bytes.fromhex("88a8000081000007")])
KINDS = st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"])


@given(st.binary(min_size=10, max_size=10), TAGS, KINDS, st.binary(max_size=90))
def test_any_frame_passes_or_is_counted(header: bytes, tags: bytes, kind: bytes, rest: bytes) -> None:
    seen, overlay = came(bytearray(header + B + A + tags + kind + rest), "protocol udp via far")
    assert seen in ([1, 2], [2]) or sum(overlay.drops.values()) == 1


def test_a_detour_by_a_router_is_told_of() -> None:
    overlay = Overlay(["vm1", "vm2"], None, None, "x", AdaptSettings("suggest"))
    router = bytes.fromhex("020000000009")
    asks = build.arp(
        src_mac=B, dst_mac=b"\xff" * 6, sha=B, spa=bytes((10, 2, 0, 5)), tpa=bytes((10, 2, 0, 1))
    )
    packet = build.udp(
        src_mac=A, dst_mac=router, src=bytes((10, 1, 0, 5)), dst=bytes((10, 2, 0, 5)), sport=1, dport=2,
        payload=bytes(1400),
    )  # fmt: skip
    told = []
    overlay.event = lambda name, **fields: told.append((name, fields["action"], fields["changed"]))
    overlay.on_batch(1, Batch.of([asks]), 0.0)
    for now in range(6):
        for _ in range(3):
            overlay.on_batch(0, Batch.of([packet] * 60), float(now))
        overlay.wake(float(now))
    assert told == [("adapt", "subnet", "vm1")]
    (last,) = overlay.status(6.0)["adapt"]["last"]
    assert "--peer 10.2.0.5=02:00:00:00:00:02" in last["why"]


def test_a_second_network_of_evpn_is_refused_and_joins_nothing() -> None:
    overlay = Overlay(["vm1"], None, None)
    spec = "evpn:{},local=127.0.0.1,port={},gobgp=unix:/nonexistent"
    overlay.add_link("one", spec.format(100, 47891))
    with pytest.raises(SpecError, match=r"one is an evpn: link.*start another vtl-vnet"):
        overlay.add_link("two", spec.format(200, 47892))
    assert "two" not in overlay.switch.links
    overlay.remove_link("one")
    overlay.add_link("two", spec.format(200, 47892))
    overlay.remove_link("two")
