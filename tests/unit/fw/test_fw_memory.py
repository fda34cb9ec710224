"""What a firewall remembers over a restart: what it takes up again, and what it refuses to."""

import os
import stat
import threading
from ipaddress import ip_network

import pytest
from fw import IN, OUT, PEER6, PEER_MAC, VM, VM6, VM_MAC, Wire
from fw_guest import (
    LOCAL6,
    ROUTER,
    SERVER,
    TO_VM,
    announced,
    claims,
    datagram,
    dhcp,
    lease,
    neighbour,
    segment,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.host import broker
from vtl_tools.common.host.broker import StateFile
from vtl_tools.common.packet import address, nd
from vtl_tools.services.fw import dhcp6
from vtl_tools.services.fw import saved_state as memory
from vtl_tools.services.fw.dhcp4 import SERVERS_MAX
from vtl_tools.services.fw.dhcp6 import IAS_MAX, LEASES_MAX
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.saved_state import StateKeeper, recall
from vtl_tools.services.fw.savi import CLAIMS_MAX, PREFIXES_MAX

FIRST = "vtl-fw 2 boot\n"
MAC = address.format_mac(VM_MAC)


def known():
    """An identity that has learned all that there is."""
    vm = Identity()
    assert vm.refuse(dhcp(dhcp_wire.DISCOVER, _61=b"\xffmine"), 0.0) == ""
    lease(vm, seconds=600)
    vm.observe(announced(valid=900), 0.0)
    assert claims(vm, LOCAL6)
    ia = b"\0\3\0\x28\0\0\0\5" + bytes(8) + b"\0\5\0\x18" + VM6 + bytes(6) + b"\2\x58"
    asked = b"\0\0\7\0\1\0\4duid" + ia
    assert vm.refuse(datagram(LOCAL6, 546, 547, b"\3" + asked, dst=dhcp6.SERVERS), 0.0) == ""
    vm.observe(datagram(ROUTER, 547, 546, b"\7" + asked, dst=LOCAL6, **TO_VM), 0.0)
    assert vm.dhcp6.leases == {VM6: 600.0}
    return vm


def remembered(vm, wire=None):
    told = []
    keeper = StateKeeper((wire or Wire("allow any")).tracker, vm, "boot", told.append)
    while not told:
        keeper.wake(keeper.deadline())
    return told[-1]


def taken(text, vm=None, now=0.0):
    vm = vm or Identity()
    assert recall(text, "boot", Wire("allow any").tracker, vm, now)
    return vm


def test_a_vm_is_known_after_a_restart():
    vm = taken(remembered(known()))
    assert vm.status() == known().status()
    assert vm.refuse(segment(VM), 1.0) == ""
    assert vm.refuse(segment(LOCAL6, PEER6), 1.0) == ""
    assert vm.refuse(neighbour(nd.NEIGHBOR_ADVERT, LOCAL6, PEER6), 1.0) == "spoofed-nd"
    assert vm.refuse(segment(VM, src_mac=PEER_MAC), 1.0) == "spoofed-mac"
    assert vm.deadline() == 600.0
    assert vm.learned() == known().learned()
    assert vm.refuse(dhcp(dhcp_wire.DISCOVER, _61=b"\xffother"), 1.0) == "spoofed-dhcp"
    assert vm.refuse(dhcp(dhcp_wire.REQUEST, src=VM, ciaddr=VM, dst=SERVER), 1.0) == ""


def test_a_lease_that_ended_meanwhile_is_not_the_vms():
    assert taken(remembered(known()), now=601.0).refuse(segment(VM), 602.0) == "spoofed-address"


def test_what_is_given_counts_more():
    text = remembered(known())
    other = taken(text, Identity(PEER_MAC))
    assert (other.mac, other.dhcp4.lease) == (PEER_MAC, None)
    given = taken(text, Identity(VM_MAC, [ip_network("10.0.0.9"), ip_network("2001:db8::9")]))
    assert (given.dhcp4.lease, dict(given.bindings.valid)) == (None, {})


def test_another_boot_is_another_vm():
    vm = Identity()
    assert not recall(remembered(known()), "later", Wire("allow any").tracker, vm, 0.0)
    assert vm.mac is None


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "vtl-fw 1 boot\n", f"{FIRST}mac\n", f"{FIRST}mac x\n", f"{FIRST}mac {MAC}\nmac {MAC}\n",
        f"{FIRST}lease 10.0.0.5\n", f"{FIRST}lease 10.0.0.5 nan\n", f"{FIRST}lease 10.0.0.5 inf\n",
        f"{FIRST}lease 10.0.0.5 1e300\n", f"{FIRST}lease 224.0.0.1 5\n", f"{FIRST}lease ::1 5\n",
        f"{FIRST}prefix ::/0 5\n", f"{FIRST}prefix 2001:db8::/64\n", f"{FIRST}prefix 10.0.0.0/8 5\n",
        f"{FIRST}prefix 2001:db8::1/64 5\n", f"{FIRST}prefix 2001:db8::/64 nan\n",
        f"{FIRST}claim 10.0.0.5\n", f"{FIRST}claim ff02::1\n", f"{FIRST}claim ::\n", f"{FIRST}claim\n",
        f"{FIRST}flow\n", f"{FIRST}flow {MAC} {MAC} out tcp 1.1.1.1 1.1.1.1\n", f"{FIRST}what 5\n",
        f"{FIRST}lease 10.0.0.5 5\nlease 10.0.0.6 5\n", f"{FIRST}server 10.0.0.1\n",
        f"{FIRST}server 10.0.0.1 x\n", f"{FIRST}server 0.0.0.0 10.0.0.1\n", f"{FIRST}client\n",
        f"{FIRST}client zz\n", f"{FIRST}client 00\n", f"{FIRST}client 0001\nclient 0002\n",
        f"{FIRST}client {'00' * 2000}\n", f"{FIRST}duid 00\n", f"{FIRST}duid {'00' * 131}\n",
        f"{FIRST}ia 3\n", f"{FIRST}ia 3 -1\n", f"{FIRST}ia 3 4294967296\n", f"{FIRST}lease6 00 5\n",
        f"{FIRST}lease6 {'00' * 16}\n", f"{FIRST}lease6 {'00' * 16} nan\n",
        f"{FIRST}\n", FIRST + "claim 2001:db8::1\n" * memory.LINES_MAX,
    ],
)  # fmt: skip
def test_of_what_is_not_right_nothing_is_used(text):
    vm, wire = Identity(), Wire("allow any")
    with pytest.raises(ValueError, match="not what vtl-fw writes"):
        recall(f"{text}mac {MAC}\n" if text.startswith(FIRST) and "mac" not in text else text, "boot",
               wire.tracker, vm, 0.0)  # fmt: skip
    assert (vm.mac, vm.dhcp4.lease) == (None, None)


@given(st.text())
def test_whatever_it_is_no_more_than_a_value_error_comes_of_it(text):
    for whole in text, FIRST + text, f"{FIRST}flow {text}", f"{FIRST}lease {text}":
        try:
            recall(whole, "boot", Wire("allow any").tracker, Identity(), 0.0)
        except ValueError:
            continue


def test_what_is_remembered_is_bounded():
    lines = [f"claim 2001:db8::{i:x}" for i in range(1, 999)] + [f"ia 3 {i}" for i in range(99)]
    lines += [f"server 10.0.0.{i} 10.0.0.{i}" for i in range(1, 99)]
    lines += [f"prefix 2001:db8:{i:x}::/48 100.0" for i in range(99)]
    lines += [f"lease6 {i:032x} 100.0" for i in range(500)]
    vm = taken("\n".join([FIRST.strip(), f"mac {MAC}", *lines]))
    kept = vm.learned()
    assert (len(kept.claims), len(kept.leases6), len(kept.met)) == (CLAIMS_MAX, LEASES_MAX, SERVERS_MAX)
    assert (len(kept.prefixes), len(kept.ias)) == (PREFIXES_MAX, IAS_MAX)
    wire = Wire("allow any")
    for vm_port in range(memory.FLOWS_MAX + 10):
        for direction in OUT, IN, OUT:
            wire.udp(direction, vm=1000 + vm_port)
    wire.udp(OUT, vm=9)
    text = remembered(known(), wire)
    assert text.count("flow ") == memory.FLOWS_MAX
    assert ":5105 " in text
    assert ":1000 " not in text
    assert ":9 " not in text
    assert len(text) < memory.OCTETS_MAX
    assert text.count("\n") <= memory.LINES_MAX


def test_it_is_written_in_small_steps_and_only_where_something_changed():
    wire, told = Wire("allow any"), []
    for vm_port in range(1000, 1300):
        for direction in OUT, IN, OUT:
            wire.udp(direction, vm=vm_port)
    keeper = StateKeeper(wire.tracker, None, "boot", told.append)
    steps = 0
    while not told:
        keeper.wake(keeper.deadline())
        steps += 1
    assert steps > 4
    for _ in range(2 * steps):
        keeper.wake(keeper.deadline())
    assert len(told) == 1
    wire.open()
    keeper.close()
    assert len(told) == 2


def test_a_service_that_never_ran_writes_nothing():
    told = []
    StateKeeper(Wire("allow any").tracker, None, "boot", told.append).close()
    assert told == []


def test_the_file_is_its_owners_and_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x.state"
    assert StateFile(path, 10).read() is None
    for text in "one", "two":
        StateFile(path, 10).replace([text])
        assert StateFile(path, 10).read() == text.encode()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["x.state"]
    with pytest.raises(OSError, match="too large"):
        StateFile(path, 2).read()
    path.chmod(0o620)
    with pytest.raises(PermissionError, match="our own file"):
        StateFile(path, 10).read()


def test_a_disk_that_hangs_holds_up_no_service_that_has_no_broker(tmp_path, monkeypatch):
    file, may_write, replace = StateFile(tmp_path / "x.state", 10), threading.Event(), broker.replace

    def hang(path, pieces, *, sync):
        may_write.wait()
        replace(path, pieces, sync=sync)

    monkeypatch.setattr(broker, "replace", hang)
    assert file.begin("one")
    assert not file.begin("two")
    may_write.set()
    assert file.finish()
    assert file.read() == b"one"
    assert StateFile(tmp_path / "no" / "x.state", 10).finish()
    lost = StateFile(tmp_path / "no" / "x.state", 10)
    assert lost.begin("one")
    with pytest.raises(FileNotFoundError):
        lost.finish()


def test_no_link_and_no_pipe_is_read_in_its_place(tmp_path):
    path = tmp_path / "x.state"
    (tmp_path / "target").write_text("x")
    path.symlink_to("target")
    with pytest.raises(OSError, match="symbolic"):
        StateFile(path, 10).read()
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(PermissionError, match="our own file"):
        StateFile(path, 10).read()
    (tmp_path / "x.state.new").symlink_to("target")
    path.unlink()
    StateFile(path, 10).replace(["new"])
    assert (tmp_path / "target").read_text() == "x"
