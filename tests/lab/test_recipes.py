"""Recipes of docs/recipes.md, with a guest that is a host of the lab behind the interface of its VM."""

import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S
from tests.recipes import ROUTER, SITE, Operator, Shell, Step, Type, at_home, resolve, titles

pytestmark = [pytest.mark.lab, pytest.mark.slow]

TESTS = Path(__file__).parents[1]
LEASE = """#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
ip route add default via "$router"
echo "nameserver $dns" >/etc/resolv.conf
"""
PROXY = """
import asyncio, sys

NAMES = dict(pair.split("=") for pair in sys.argv[1:])

async def copy(reader, writer):
    while octets := await reader.read(65536):
        writer.write(octets)
        await writer.drain()
    writer.write_eof()

async def serve(reader, writer):
    _, count = await reader.readexactly(2)
    method = 2 if 2 in await reader.readexactly(count) else 0
    writer.write(bytes((5, method)))
    if method:
        await reader.readexactly((await reader.readexactly(2))[1])
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(bytes((1, 0)))
    kind = (await reader.readexactly(4))[3]
    size = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
    target = await reader.readexactly(size)
    name = target.decode() if kind == 3 else ".".join(map(str, target))
    port = int.from_bytes(await reader.readexactly(2), "big")
    if name.endswith(".onion"):  # as tor answers a name that cannot be
        writer.write(bytes((5, 0xF6, 0, 1)) + bytes(6))
        return writer.close()
    far_reader, far_writer = await asyncio.open_connection(NAMES.get(name, name), port)
    writer.write(bytes((5, 0, 0, 1)) + bytes(6))
    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 9050)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def behind(operator: Operator, interface: str, address: str = "", name: str = "vm") -> tuple[Host, Type]:
    """A guest behind an interface of the host. Without an address, it leases one before its first command."""
    lab, guest = operator.lab, operator.lab.host(name)
    lab.veth(operator.host, interface, guest, "eth0")
    programs = lab.dir / "busybox"
    programs.mkdir(exist_ok=True)
    wget = programs / "wget"
    if not wget.exists():
        wget.symlink_to("/bin/busybox")  # that of the lab's guests
    shell = Shell(lab, guest, lab.dir / name, None, [programs])
    resolve(lab, guest, ROUTER)
    if address:
        guest.addr("eth0", address)
        guest.route("default", ROUTER)
        return guest, shell.type
    script = lab.dir / "lease.sh"
    script.write_text(LEASE)
    script.chmod(0o755)

    def type_with_lease(command: str) -> tuple[int, str]:
        if not guest.run("ip", "-4", "route").stdout:
            guest.run(
                "busybox", "udhcpc", "-i", "eth0", "-nqf", "-t", "60", "-T", "1", "-A", "1", "-s", script
            )
        return shell.type(command)

    return guest, type_with_lease


def tor(operator: Operator) -> None:
    """Run a SOCKS proxy in the place of tor."""
    command = [sys.executable, "-c", PROXY, f"www.example.com={SITE}"]
    proxy = operator.host.popen(*command, stdout=subprocess.PIPE)
    assert proxy.stdout.readline() == b"ready\n"


def test_a_vm_behind_wi_fi(lab: Lab) -> None:
    operator = at_home(lab)
    mac = operator.host.mac("wlan0")
    access_point = lab.hosts[1]
    rule = f"type filter hook ingress device eth0 priority 0; ether saddr != {mac} drop;"
    access_point.run("nft", "-f", "-", input=f"table netdev ap {{\nchain c {{\n{rule}\n}}\n}}\n")
    _, guest = behind(operator, "vmnet1")
    operator.follow("A VM behind Wi-Fi", {"vm# ": guest})


def test_a_firewall_in_front_of_tor(lab: Lab) -> None:
    operator = at_home(lab)
    tor(operator)
    _, guest = behind(operator, "vmnet1")
    operator.follow("A firewall in front of Tor", {"vm# ": guest})


def test_one_vm_on_tor_and_another_behind_a_firewall(lab: Lab) -> None:
    operator = at_home(lab, "eth0")
    tor(operator)
    _, one = behind(operator, "vmnet1", "192.168.1.71/24", "vm")
    _, two = behind(operator, "vmnet2", "192.168.1.72/24", "vm2")
    operator.follow("One VM on Tor, and another behind a firewall", {"vm# ": one, "vm2# ": two})


def test_a_service_is_taken_away_and_no_connection_of_the_guest_ends(lab: Lab) -> None:
    operator = at_home(lab, "eth0")
    guest, typed = behind(operator, "vmnet1", "192.168.1.71/24")
    with lab.hosts[1].enter():
        listener = socket.create_server((SITE, 22))
    with listener, ExitStack() as stack:
        ends: list[socket.socket] = []

        def connection_lives(step: Step) -> None:
            if step.prompt != "vm# ":
                return
            if not ends:
                with guest.enter():
                    ends.append(stack.enter_context(socket.create_connection((SITE, 22), PATIENCE_S)))
                ends.append(stack.enter_context(listener.accept()[0]))
            ends[0].sendall(b"still here")
            assert ends[1].recv(100) == b"still here"

        operator.follow(
            "Taking a service away without cutting off the guest", {"vm# ": typed}, connection_lives
        )


def test_the_traffic_of_a_vm_is_captured_for_a_limited_time(lab: Lab) -> None:
    operator = at_home(lab, "eth0")
    guest, typed = behind(operator, "vmnet1", "192.168.1.71/24")
    guest.popen("ping", "-i", "0.01", ROUTER, stdout=subprocess.DEVNULL)
    operator.follow("Capturing a VM's traffic for a limited time", {"vm# ": typed})


def test_a_policy_is_tested_in_ci(lab: Lab) -> None:
    Operator(lab, lab.host("runner")).follow("A policy that is tested in CI")


def test_every_recipe_is_run_by_a_test() -> None:
    texts = [path.read_text() for path in (Path(__file__), TESTS / "vm" / "test_recipes_guest.py")]
    assert titles()
    assert not [title for title in titles() if not any(f'"{title}"' in text for text in texts)]
