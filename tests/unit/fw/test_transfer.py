"""A VM moves: the firewall on its next host takes up what the one before knew of it."""

import asyncio
import time

import pytest
from fw import IN, OUT, PEER_MAC, VM, VM_MAC, Wire
from fw_guest import segment
from test_fw_memory import known

from vtl_tools.common.errors import VTLError
from vtl_tools.common.packet.address import format_mac
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.fw import transfer
from vtl_tools.services.fw.identity import Identity

HERE = "allow out tcp port 80\nallow out udp port 53\nreject"


def fresh(text=HERE):
    """A firewall whose clock is that of this machine, as transfer's is."""
    wire = Wire(text)
    wire.now = time.monotonic()
    return wire


def export(wire, identity=None):
    return asyncio.run(transfer.export(wire.tracker, identity))["state"]


def import_(text, wire, identity=None):
    with SealedFile.of([text.encode()]) as upload:
        return asyncio.run(transfer.import_(wire.tracker, identity, upload))


def moved(before, text=HERE):
    after = fresh(text)
    import_(export(before), after)
    return after


def test_without_it_a_connection_in_mid_flight_is_denied_or_reset():
    after = fresh()
    assert after.out("P.", 500, 900, b"hello") == "tcp-not-open"
    assert after.come("P.", 900, 500, b"hello") == "rule"  # of reject


@pytest.mark.parametrize("first", [OUT, IN])
def test_a_connection_goes_on_at_another_firewall_whoever_speaks_first(first):
    before = fresh()
    before.open()
    after = moved(before)
    says = {
        OUT: lambda: after.out("P.", 500, 900, b"hello"),
        IN: lambda: after.come("P.", 900, 500, b"hello"),
    }
    assert says[first]() == "+known"
    assert says[first.other]() == "+known"
    assert after.come(".", 2_000_000_000, 505, b"x") == "tcp-out-of-window"
    assert after.out(".", 500, 900, vm=40001) == "tcp-not-open"
    assert after.come(".", 900, 500, vm=40001) == "rule"


def test_the_rules_there_judge_what_comes():
    before = fresh()
    before.open()
    after = moved(before, "allow out tcp port 443\ndeny")
    assert after.out(".", 500, 900) == "rule"
    assert after.come(".", 900, 500) == "rule"


def test_a_vm_that_moves_twice_before_anything_is_heard_of_it_keeps_its_connections():
    before = fresh()
    before.open()
    assert moved(moved(before)).come(".", 900, 500) == "+known"


def test_a_vm_that_comes_back_is_not_judged_by_the_numbers_of_its_last_stay():
    before = fresh()
    before.open()
    there = moved(before)
    assert there.out("P.", 50_000_000, 900, b"hello") == "+known"
    assert before.out("P.", 50_000_005, 900, b"hello") == "tcp-out-of-window"
    import_(export(there), before)
    assert before.out("P.", 50_000_005, 900, b"hello") == "+known"


def test_a_connection_waits_as_long_as_its_protocol_may_be_silent():
    before = fresh()
    before.open()
    for way in OUT, IN, OUT:
        assert before.udp(way)[0] == "+"
    after = moved(before)
    after.wait(299)
    assert after.udp(IN) == "+known"
    after = moved(before)
    after.wait(400)
    assert after.udp(IN) == "rule"
    after.wait(7000)
    assert after.come(".", 900, 500) == "+known"
    after = moved(before)
    after.wait(7500)
    assert after.come(".", 900, 500) == "rule"


def test_a_stranger_who_is_heard_first_does_not_cut_the_vm_off():
    before = fresh()
    before.open()
    after = moved(before)
    assert after.come(".", 1_000_000_000, 2_000_000_000, b"x") == "+known"  # in the peer's name
    assert after.out("P.", 500, 900, b"hello") == "+known"
    assert after.come(".", 900, 505) == "+known"
    assert after.come(".", 1_000_000_000, 2_000_000_000, b"x")[0] != "+"
    assert after.out(".", 1_500_000_000, 900, b"x") == "tcp-out-of-window"


def test_the_vm_is_known_with_its_leases_by_the_calendar(monkeypatch):
    vm, wire = known(), fresh()
    vm.dhcp4.lease = vm.dhcp4.lease._replace(until=time.monotonic() + 600)
    text = export(wire, vm)
    later = Identity()
    assert import_(text, fresh(), later) == {"connections": 0, "identity": True}
    assert later.mac == VM_MAC
    assert later.refuse(segment(VM), time.monotonic()) == ""
    assert abs(later.dhcp4.lease.until - vm.dhcp4.lease.until) < 1.0
    day = time.time() + 86_400
    monkeypatch.setattr(transfer.time, "time", lambda: day)
    later = Identity()
    import_(text, fresh(), later)
    assert later.refuse(segment(VM), time.monotonic()) == "spoofed-address"


def test_another_vm_is_not_taken_for_it():
    wire = fresh()
    wire.open()
    text, other, after = export(wire, known()), Identity(PEER_MAC), fresh()
    with pytest.raises(
        VTLError, match=f"is of {format_mac(VM_MAC)}, and the VM here is {format_mac(PEER_MAC)}"
    ):
        import_(text, after, other)
    assert other.learned() == Identity(PEER_MAC).learned()
    assert after.come(".", 900, 500) == "rule"
    assert import_(text, fresh(), Identity(VM_MAC))["identity"] is True
    assert import_(text, fresh(), None) == {"connections": 1, "identity": False}


@pytest.mark.parametrize("text", ["", "vtl-fw 2 boot\n", f"{transfer.FIRST}\nflow x\n", "\x80", "{}"])
def test_what_is_no_export_changes_nothing(text):
    vm, wire = Identity(), fresh()
    with pytest.raises(VTLError, match="export the state again"):
        import_(text + f"mac {'52:54:00:00:00:01'}\n", wire, vm)
    assert vm.mac is None
    with pytest.raises(VTLError, match="no file came along"):
        asyncio.run(transfer.import_(wire.tracker, vm, None))


def test_imports_without_end_take_bounded_room():
    before, after = fresh(), fresh()
    after.tracker.recalled_max = 2
    for port in 1, 2, 3:
        before.open(vm=port)
        import_(export(before), after)
        before.tracker.end(next(iter(before.tracker.flows)))
    assert [after.come(".", 900, 500, vm=port) for port in (1, 2, 3)] == ["rule", "+known", "+known"]
