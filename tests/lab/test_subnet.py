"""vtl-subnet in the scene of Figure 6: real network stacks, two far gateways, a LAN that both VMs share."""

import hashlib
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lab.figure6 import Figure6
from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge, bridge

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ALLOW = ("--allow", "10.0.0.0/8", "--allow", "fd00::/8")
LONG, SHORT = 62, 63  # what is left of a TTL of 64 behind two gateways, and behind one process


@pytest.fixture
def scene(lab: Lab) -> Figure6:
    return Figure6(lab)


@contextmanager
def service(scene: Figure6, n: int, *arguments: str, name: str = "") -> Iterator[Bridge]:
    host = scene[f"host{n}"]
    with bridge(
        scene.lab, host, *scene.links(n), *(arguments or ALLOW), name=name or f"s{n}", service="vtl-subnet"
    ) as running:
        assert running.ready["event"] == "ready"
        yield running


def keyed(n: int, key: Path) -> tuple[str, ...]:
    """Options of a service that others believe by a key, so that its VM's addresses are given."""
    return *ALLOW, "--address", f"10.{n}.0.5", "--address", f"fd0{n}::5", "--key", str(key)


@pytest.fixture
def both(scene: Figure6) -> Iterator[tuple[Bridge, Bridge]]:
    with service(scene, 1) as one, service(scene, 2) as other:
        yield one, other


def ttl(host: Host, address: str, *options: str) -> int:
    """What is left of the TTL of a ping's answer; 0: there is none."""
    said = host.run("ping", "-c1", "-W2", *options, address, check=False).stdout
    found = re.search(r"ttl=(\d+)", said)
    return int(found[1]) if found else 0


def row(running: Bridge, address: str) -> dict[str, Any]:
    found = running.status()["shortcuts"].get(address)
    return dict(found) if found else {"state": None}


def carried(running: Bridge, address: str) -> int:
    """Octets of the VM that a shortcut has carried."""
    return int(running.status()["traffic"].get(address, {}).get("tx_octets", 0))


def pings_by(scene: Figure6, way: int, *, v6: bool = False) -> None:
    """Wait until what VM1 and VM2 say goes a way in both directions, as each sees in what it gets."""
    for source, sink in (1, 2), (2, 1):
        host, address = scene[f"vm{source}"], scene.address(sink, v6=v6)
        until(lambda host=host, address=address: ttl(host, address) == way, f"{address} at {way}")


def test_two_vms_on_one_lan_find_the_short_way(scene: Figure6, both: tuple[Bridge, Bridge]) -> None:
    vm1, (one, other) = scene["vm1"], both
    until(lambda: ttl(vm1, "10.2.0.5") == LONG, "the long way")
    for v6 in False, True:
        pings_by(scene, SHORT, v6=v6)

    def goes_by_the_lan() -> bool:
        """Whether pings pass on the LAN, and none on the long way, where there is only neighbours' talk."""
        before = one.status()["links"]
        ran = vm1.run("ping", "-c20", "-i0.05", "-q", "10.2.0.5", check=False)
        after = one.status()["links"]
        assert "duplicates" not in ran.stdout
        (_, proxy, lan) = (
            [now[f"{d}_frames"] - then[f"{d}_frames"] for d in ("tx", "rx")]
            for now, then in zip(after, before, strict=True)
        )
        return "20 received" in ran.stdout and max(proxy) < 10 and min(lan) >= 20

    until(goes_by_the_lan, "pings to go by the LAN")
    # The routers are asked still: by who has no hop left, and for all else
    assert "From 10.1.0.1" in vm1.run("ping", "-c1", "-W2", "-t1", "10.2.0.5", check=False).stdout
    assert ttl(vm1, "10.2.0.1") == 63  # gw2 answers, behind gw1
    assert ttl(vm1, "10.1.0.1") == 64
    for address in "10.2.0.5", "fd02::5":
        assert row(one, address)["state"] == "up"
    spared = one.status()["spared"]
    assert spared["octets"] > 20 * 98
    assert set(other.drops()) <= {"neighbours", "not-for-vm", "not-ip"}
    # as its user asks
    told = subprocess.run(
        [BIN / "vtl-subnet", "status", "--link", one.socket], capture_output=True, text=True, check=True
    )
    assert "10.2.0.5" in told.stdout
    command = [BIN / "vtl-subnet", "status", "--json", "--link", one.socket]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["shortcuts"]["10.2.0.5"]["state"] == "up"


class Transfer:
    """A TCP connection from VM1 to VM2 on which data goes all the time, until stop() compares it."""

    def __init__(self, scene: Figure6, *, v6: bool) -> None:
        family, address = (socket.AF_INET6, "::") if v6 else (socket.AF_INET, "0.0.0.0")
        listen = partial(socket.create_server, (address, 5000 + v6), family=family)
        with scene["vm2"].call(listen) as listener:
            far = (scene.address(2, v6=v6), 5000 + v6)
            self.near = scene["vm1"].call(partial(socket.create_connection, far, 10.0))
            self.far = listener.accept()[0]
        self.near.settimeout(PATIENCE_S)
        self.far.settimeout(PATIENCE_S)
        self.sent, self.got = hashlib.sha256(), hashlib.sha256()
        self.octets = [0, 0]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        rng = Random(6)
        with self.near:
            while not self._stop.is_set():
                data = rng.randbytes(rng.randrange(1, 40_000))
                self.near.sendall(data)
                self.sent.update(data)
                self.octets[0] += len(data)
                time.sleep(0.002)  # two processors carry all of Figure 6

    def _receive(self) -> None:
        with self.far:
            while data := self.far.recv(1 << 16):
                self.got.update(data)
                self.octets[1] += len(data)

    def moves(self) -> None:
        """Wait until more has arrived."""
        mark = self.octets[0] + 200_000
        until(lambda: self.octets[1] > mark, "the transfer to go on")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60.0)
        assert self.octets[0] == self.octets[1]
        assert self.sent.digest() == self.got.digest()


@pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
def test_a_transfer_outlives_the_loss_of_the_short_way(scene: Figure6, v6: bool) -> None:
    """The LAN's switch forgets a cable, a link goes down, a process is killed; each comes back."""
    address = scene.address(2, v6=v6)
    with service(scene, 1) as one, ExitStack() as stack:
        killed = stack.enter_context(ExitStack())
        other = killed.enter_context(service(scene, 2))

        def is_up() -> bool:
            return bool(row(one, address)["state"] == "up")

        def is_carried() -> None:
            until(is_up, "the short way")
            before = carried(one, address)
            until(lambda: carried(one, address) > before + 200_000, "the short way to carry data")

        def is_left() -> None:
            until(lambda: not is_up(), "the short way to be left")
            transfer.moves()

        until(lambda: ttl(scene["vm1"], address), "the long way")
        transfer = Transfer(scene, v6=v6)
        is_carried()
        scene.unplug(2)
        is_left()
        scene.plug(2)
        is_carried()
        scene["host1"].run("ip", "link", "set", "dev", "lanlink", "down")
        is_left()
        scene["host1"].run("ip", "link", "set", "dev", "lanlink", "up")
        is_carried()
        other.process.send_signal(signal.SIGKILL)
        other.process.wait(PATIENCE_S)
        until(lambda: not is_up(), "the short way to be left")
        stack.enter_context(service(scene, 2, name="again"))
        transfer.moves()
        is_carried()
        transfer.stop()
        killed.pop_all()  # its end was not its own


def test_a_process_that_ends_says_so_and_the_long_way_is_there(scene: Figure6) -> None:
    with service(scene, 1) as one, ExitStack() as stack:
        with service(scene, 2):
            pings_by(scene, SHORT)
        joined = ("--iface", "vm2", "--iface", "proxylink")
        stack.enter_context(bridge(scene.lab, scene["host2"], *joined, name="plain"))
        until(lambda: ttl(scene["vm1"], "10.2.0.5") == LONG, "the long way")
        seen = []
        while not seen or seen[-1]["reason"] != "given-up":
            event = one.event()
            if event["event"] == "shortcut":
                seen.append(event)
        assert seen[0]["state"] == "probing"
        assert {"wanted", "answered", "bye"} <= {event["reason"] for event in seen}


def test_who_is_not_allowed_or_has_not_the_key_goes_the_long_way(scene: Figure6) -> None:
    keys = [scene.lab.dir / f"{name}.key" for name in ("one", "other")]
    for path in keys:
        path.write_text(f"this is the key {path}\n")
        path.chmod(0o600)
    for number, (first, second, reason) in enumerate((
        (ALLOW, ("--allow", "192.168.0.0/16"), "not-allowed"),
        (keyed(1, keys[0]), ALLOW, "unauthenticated"),
        (keyed(1, keys[0]), keyed(2, keys[1]), "unauthenticated"),
    )):  # fmt: skip
        with ExitStack() as stack:
            pair = [
                stack.enter_context(service(scene, n, *arguments, name=f"s{n}-{number}"))
                for n, arguments in ((1, first), (2, second))
            ]
            until(lambda: ttl(scene["vm1"], "10.2.0.5") == LONG, "the long way")

            def refused(pair: list[Bridge] = pair, reason: str = reason) -> bool:
                assert ttl(scene["vm1"], "10.2.0.5") in (LONG, 0)
                return any(one.drops().get(reason, 0) > 0 for one in pair)

            until(refused, reason)
            said = scene["vm1"].run("ping", "-c8", "-i0.2", "10.2.0.5").stdout
            assert set(re.findall(r"ttl=(\d+)", said)) == {str(LONG)}
    with service(scene, 1, *keyed(1, keys[0])), service(scene, 2, *keyed(2, keys[0])):
        pings_by(scene, SHORT)


def test_a_machine_on_the_lan_needs_no_process(scene: Figure6) -> None:
    """It answers ARP and neighbour solicitations, which are padded to what is to go there."""
    vm1, solo = scene["vm1"], scene.lab.host("solo")
    scene.lab.veth(solo, "eth0", scene.lan, "solo")
    scene.lan.run("ip", "link", "set", "dev", "solo", "master", "lan")
    solo.addr("eth0", "10.7.0.7/24", "fd07::7/64")
    for family, prefix, address in ("-4", "10.1.0.0/24", "10.1.0.5"), ("-6", "fd01::/64", "fd01::5"):
        solo.run("ip", family, "route", "add", prefix, "dev", "eth0")
        solo.run("ip", "neigh", "add", address, "lladdr", vm1.mac("eth0"), "dev", "eth0", "nud", "permanent")
    mac = solo.mac("eth0")
    with service(scene, 1, "--peer", f"10.7.0.7={mac}", "--peer", f"fd07::7={mac}") as one:
        with service(scene, 2):
            for v6 in False, True:  # so that VM1's addresses are known
                until(lambda v6=v6: ttl(vm1, scene.address(2, v6=v6)) == LONG, "the long way")
            for address in "10.7.0.7", "fd07::7":
                in_fragments = ("ping", "-c3", "-i0.1", "-W2", "-s4000", address)

                def answers(ping: tuple[str, ...] = in_fragments) -> bool:
                    said = vm1.run(*ping, check=False).stdout
                    return "3 received" in said and "ttl=64" in said

                until(answers, address)
                found = row(one, address)
                assert (found["peer"], found["found"], found["state"]) == (mac, "given", "up")


def test_the_vm_is_told_what_fits_the_short_way(scene: Figure6) -> None:
    """What does not fit goes the long way, and is not lost; what follows is made to fit."""
    vm1 = scene["vm1"]
    for n in 1, 2:
        scene[f"host{n}"].run("ip", "link", "set", "dev", "lanlink", "mtu", "1400")
    with service(scene, 1), service(scene, 2):
        for v6, size in (False, "1472"), (True, "1452"):
            pings_by(scene, SHORT, v6=v6)
            far = scene.address(2, v6=v6)
            if not v6:  # 1500 octets that may be cut
                assert ttl(vm1, far, "-M", "dont", "-s", size) == LONG

            def is_told(far: str = far, size: str = size) -> bool:
                vm1.run("ping", "-c1", "-W1", "-M", "do", "-s", size, far, check=False)
                return "mtu 1400" in vm1.run("ip", "route", "get", far).stdout

            until(is_told, "the VM to know")
        transfer = Transfer(scene, v6=False)
        transfer.moves()
        transfer.stop()
