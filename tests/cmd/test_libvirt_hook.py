"""The hook that starts a guest's services, told as libvirt documents; a stub stands in for systemctl."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cmd.tools import ROOT, SERVICES

OF_GUESTS = [service for service in SERVICES if service.startswith("vtl-")]
"""The others belong to the host's own interface."""
HOOK = ROOT / "contrib/libvirt/vtl-services"
XML = """<?xml version="1.0"?>
<domain type='kvm' id='7'>
  <name>web</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><source file='/web.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <interface type='ethernet'>
      <mac address='52:54:00:00:00:02'/>
      <target dev='vnet0'/>
      <model type='virtio'/>
      <alias name='net0'/>
    </interface>
    %s
  </devices>
</domain>
"""
SECOND = "<interface type='bridge'><source bridge='br0'/><target dev='br-lan'/></interface>"
MACVTAP = "<interface type='direct'><source dev='eth0'/><target dev='macvtap0'/></interface>"


class Libvirt:
    """Runs the hook as libvirt does. `calls` is what systemctl was called with."""

    def __init__(self, where: Path) -> None:
        self.where = where
        (where / "vm/web").mkdir(parents=True)
        (where / "bin").mkdir()
        self.refuse(status=0)

    def refuse(self, *, status: int) -> None:
        stub = self.where / "bin/systemctl"
        stub.write_text(f'#!/bin/sh\necho "$*" >>"{self.where}/calls"\necho noise\nexit {status}\n')
        stub.chmod(0o755)

    def has(self, service: str, settings: str, guest: str = "web") -> None:
        (self.where / "vm" / guest / service).write_text(settings)

    def tells(self, told: str, more: str = "", guest: str = "web") -> "subprocess.CompletedProcess[str]":
        environment = {
            "PATH": f"{self.where}/bin:{os.environ['PATH']}",
            "VTL_SETTINGS": str(self.where / "vm"),
            "VTL_VM_RUN": str(self.where / "run"),
        }
        return subprocess.run(
            [HOOK, guest, *told.split()],
            input=XML % more,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        path = self.where / "calls"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found


@pytest.fixture
def libvirt(tmp_path: Path) -> Libvirt:
    return Libvirt(tmp_path)


def test_services_start_before_the_guest_with_its_address_and_end_after_it(libvirt: Libvirt) -> None:
    libvirt.has("fw", "UPLINK=eth0\nRULES=/etc/vtl/web.rules\n")
    libvirt.has("freeze", "OPTIONS=--vm web")
    for told in "prepare begin -", "started begin -", "release end shutdown", "migrate begin -":
        ran = libvirt.tells(told)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert libvirt.calls() == []
    ran = libvirt.tells("start begin -", SECOND)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    taps = "vnet0", "br\\x2dlan"
    units = [f"vtl-{service}@{tap}.service" for tap in taps for service in ("fw", "freeze")]
    assert libvirt.calls() == [f"start {unit}" for unit in units]
    run = libvirt.where / "run"
    assert (run / "fw-vnet0").read_text().splitlines() == [
        "UPLINK=eth0",
        "RULES=/etc/vtl/web.rules",
        "",
        "VM_OPTIONS=--mac 52:54:00:00:00:02",
    ]
    assert (run / "freeze-br-lan").read_text() == "OPTIONS=--vm web\n"
    ran = libvirt.tells("stopped end -", SECOND)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert libvirt.calls() == [f"stop --no-block {unit}" for unit in units]
    assert list(run.iterdir()) == []


def test_a_guest_whose_firewall_does_not_start_does_not_start(libvirt: Libvirt) -> None:
    libvirt.has("fw", "UPLINK=eth0\n")
    libvirt.refuse(status=1)
    ran = libvirt.tells("start begin -")
    assert ran.returncode == 1
    assert ran.stderr.startswith("vtl-services: web: ")
    assert "journalctl -u" in ran.stderr


@pytest.mark.parametrize("told", ["reconnect begin -", "stopped end -"])
def test_a_guest_that_runs_is_not_killed_for_a_service(libvirt: Libvirt, told: str) -> None:
    libvirt.has("fw", "UPLINK=eth0\n")
    libvirt.refuse(status=1)
    ran = libvirt.tells(told)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr


def test_past_the_firewall_by_an_interface_without_a_tap(libvirt: Libvirt) -> None:
    libvirt.has("fw", "UPLINK=eth0\n")
    ran = libvirt.tells("start begin -", MACVTAP)
    assert ran.returncode == 1
    assert "interface of type direct has no tap" in ran.stderr
    assert libvirt.calls() == []


def test_a_service_that_there_is_not_lets_no_guest_start_without_it(libvirt: Libvirt) -> None:
    for service in OF_GUESTS:
        libvirt.has(service.removeprefix("vtl-"), "")
    libvirt.has("fw~", "")
    assert libvirt.tells("start begin -").returncode == 0
    assert {line.split("@")[0] for line in libvirt.calls()} == {f"start {service}" for service in OF_GUESTS}
    assert libvirt.calls() == []
    libvirt.has("firewall", "")
    ran = libvirt.tells("start begin -")
    assert ran.returncode == 1
    assert "web/firewall: no such service; the services are ack, bridge, " in ran.stderr
    assert libvirt.calls() == []
    assert libvirt.tells("stopped end -").returncode == 0
    assert len(libvirt.calls()) == len(OF_GUESTS)


@pytest.mark.parametrize("guest", ["db", ".", "..", "../vm/web"])
def test_a_guest_without_settings_is_left_alone(libvirt: Libvirt, guest: str) -> None:
    libvirt.has("fw", "UPLINK=eth0\n")
    ran = libvirt.tells("start begin -", MACVTAP, guest=guest)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert libvirt.calls() == []


def test_the_guests_name_of_a_tap_is_no_option_and_no_path(libvirt: Libvirt) -> None:
    libvirt.has("freeze", "")
    for name in "--help", "../etc", "a b", "a:b":
        libvirt.tells("start begin -", f"<interface type='bridge'><target dev='{name}'/></interface>")
    assert {line.split()[-1] for line in libvirt.calls()} == {"vtl-freeze@vnet0.service"}
