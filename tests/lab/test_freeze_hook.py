"""The hook that libvirt runs, as libvirt documents it; and a VM whose tap goes away while it is in a file."""

import os
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.wait import PATIENCE_S, until
from tests.running import BIN
from vtl_tools.common.errors import NotRunningError
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

HOOK = Path(__file__).resolve().parents[2] / "examples/freeze-libvirt-hook"
VM, PEER = "10.9.0.2", "10.9.0.1"
XML = """<?xml version="1.0"?>
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <memory unit='KiB'>262144</memory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><source file='/web.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:02'/>
      <source bridge='br0'/>
      <target dev='vnet0'/>
      <model type='virtio'/>
      <alias name='net0'/>
    </interface>
    <interface type='user'><mac address='52:54:00:00:00:03'/></interface>
    %s
  </devices>
</domain>
"""
TOLD = (
    ("prepare begin -", False),
    ("start begin -", False),
    ("started begin -", False),
    ("stopped end -", False),
    ("release end -", False),
    ("release end migrated", False),
    ("release end saved", True),
    ("restore begin -", True),
    ("migrate begin -", True),
    ("reconnect begin -", True),
    ("attach begin -", True),
    ("release end migrated", True),
    ("release end saved", True),
    ("started begin -", False),
    ("release end saved", True),
    ("release end destroyed", False),
    ("release end saved", True),
    ("release end shutdown", False),
    ("release", False),
)
"""What libvirt tells, one after the other, and whether the VM is answered for then."""


@pytest.fixture
def scene(lab):
    """vm eth0 - vnet0 [host, with br0] up - eth0 peer"""
    vm, host, peer = lab.host("vm"), lab.host("host"), lab.host("peer")
    lab.veth(vm, "eth0", host, "vnet0")
    lab.veth(peer, "eth0", host, "up")
    lab.bridge(host, "br0", ["vnet0", "up"])
    vm.addr("eth0", f"{VM}/24")
    peer.addr("eth0", f"{PEER}/24")
    for name, value in {"time": 2, "intvl": 1, "probes": 3}.items():
        peer.sysctl(f"net.ipv4.tcp_keepalive_{name}", value)
    return vm, host, peer


@pytest.fixture
def env(lab):
    run = lab.dir / "run"
    run.mkdir(mode=0o700)
    return {**os.environ, "VTL_RUN": str(run), "PATH": f"{BIN}:{os.environ['PATH']}"}


def listens(path):
    try:
        return control.ask(path, "status")
    except NotRunningError:
        return None


@contextmanager
def vtl_freeze(host, env, iface):
    """Run the service; yields what tells its status."""
    path = Path(env["VTL_RUN"], f"vtl-freeze-{iface}.sock")
    service = host.popen("vtl-freeze", "--iface", iface, env=env)
    until(lambda: listens(path) or service.poll(), "the service")
    yield lambda: control.ask(path, "status")["freeze"]
    service.terminate()
    assert service.wait(PATIENCE_S) == 0


def connection(vm, peer):
    """Return both ends; the peer's asks every second whether the VM is there."""
    with vm.enter():
        listener = socket.create_server((VM, 7))
    with listener:
        with peer.enter():
            far = socket.create_connection((VM, 7), 60)
        near, _ = listener.accept()
    near.settimeout(PATIENCE_S)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return near, far


def test_the_hook_tells_what_qemu_does_not(scene, env):
    _, host, _ = scene

    def hook(*words, xml=XML % ""):
        """Nothing may come out, or libvirt takes it for a guest's XML; and nothing may fail."""
        ran = subprocess.run(
            [HOOK, "web", *words], input=xml, capture_output=True, text=True, check=True, env=env
        )
        assert ran.stdout == ""
        return ran.stderr

    with vtl_freeze(host, env, "vnet0") as status:
        for words, frozen in TOLD:
            hook(*words.split())
            assert status()["frozen"] is frozen, words
        other = "<interface type='ethernet'><target dev='{}' managed='no'/></interface>"
        for name in "--help", "/etc/passwd", "a:b", "":
            assert (
                hook("release", "end", "saved", xml=(XML % other.format(name)).replace("vnet0", name)) == ""
            )
        assert "vnet7" in hook("release", "end", "saved", xml=XML % other.format("vnet7"))
        assert status()["frozen"], "the one that runs was told, too"
        assert "XML" in hook("started", "begin", "-", xml="<domain>")


def test_a_vm_whose_tap_goes_is_held_by_another_interface(scene, env, lab):
    vm, host, peer = scene
    near, far = connection(vm, peer)
    mac = vm.mac("eth0")
    with vtl_freeze(host, env, "vnet0") as status:
        far.sendall(b"one")
        assert near.recv(3) == b"one"
        until(lambda: status()["connections"], "the connection to be known")
        host.run("vtl-freeze", "start", "--link", "vnet0", env=env)
        exported = host.run("vtl-freeze", "export", "--link", "vnet0", env=env).stdout
    host.run("ip", "link", "set", "dev", "vnet0", "down")
    host.run("ip", "link", "add", "hold", "type", "veth", "peer", "name", "hold0")
    for name in "hold", "hold0":
        host.run("ip", "link", "set", "dev", name, "up")
    host.run("ip", "link", "set", "dev", "hold0", "master", "br0")
    with vtl_freeze(host, env, "hold0") as status:
        host.run("vtl-freeze", "import", "--link", "hold0", input=exported, env=env)
        assert f"{mac} dev hold0 " in host.run("bridge", "fdb").stdout
        until(lambda: status()["answered"] >= 5, "keep-alives", 60)
        host.run("ip", "link", "set", "dev", "vnet0", "up")
        host.run("vtl-freeze", "stop", "--link", "hold0", env=env)
        near.sendall(b"back")
        assert far.recv(4) == b"back"
    near.close()
    far.close()
