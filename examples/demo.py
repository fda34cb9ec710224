"""The program of `make demo`: real Linux guests reach web servers through vtl-bridge, and through vtl-tor.

vtl-bridge first with the guest on a host-only tap, behind a guard; then with the guest on a QEMU socket, and
both QEMU and vtl-bridge running as an ordinary user. vtl-tor with a guest that knows of nothing but DHCP, and
a private Tor network of real relays. Ends with a table of the evidence.
"""

import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from lab.guest import Guest
from lab.netns import Host, Lab
from lab.tor import RELAYS, SITES, TorNetwork
from lab.user import NOBODY, as_user
from lab.wait import until
from vtl_tools.common.errors import VTLError
from vtl_tools.common.runtime import control

console = Console(width=110)
Row = tuple[str, str, str]


def step(text: str) -> None:
    console.print(f"[bold]>[/] {text}")


@contextmanager
def service(
    lab: Lab, host: Host, tool: str, *arguments: str, user: int | None = None
) -> Iterator[tuple[Any, Path]]:
    """Run one of our tools, as its user would."""
    where = lab.dir / ("root" if user is None else "user") / f"{tool}.sock"
    where.parent.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        os.chown(where.parent, user, user)
    console.print(
        f"  $ {tool} {' '.join(arguments)}" + (f"     [dim](as user {user})[/]" if user else ""),
        soft_wrap=True,
    )
    command = [Path(sys.executable).with_name(tool)] if user is None else as_user(lab, host, tool)
    process = host.popen(
        *command, *arguments, "--control", where, "--json", stdout=subprocess.PIPE, text=True, user=user
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    if '"ready"' not in ready:
        raise VTLError(f"demo: {tool} did not start: {ready}")
    try:
        yield process, where
    finally:
        process.terminate()
        process.wait(10)


def bridge(lab: Lab, host: Host, *links: str, user: int | None = None) -> Any:
    """Run vtl-bridge on these links."""
    return service(
        lab, host, "vtl-bridge", *(word for link in links for word in ("--iface", link)), user=user
    )


def fetch(guest: Guest, url: str) -> str | None:
    """Let the guest download a page; return its SHA-256, as the guest sums it up, or None."""
    console.print(f"  guest# wget -qO- {url} | sha256sum")
    ran = guest.sh(f"timeout 20 wget -qO /tmp/page {url} && sha256sum /tmp/page")
    return ran.out.split()[0] if ran.status == 0 else None


def evidence(rows: list[Row], guest: Guest, digest: str, got: str | None, took_s: float, size: int) -> None:
    rows.append(("guest", guest.sh("uname -srm").out.strip(), "a real kernel, in QEMU"))
    same = "the same SHA-256 at both ends" if got == digest else "NOT WHAT WAS SENT"
    rows.append(("download", f"{size:,} octets in {took_s:.2f} s", same))


def counted(rows: list[Row], socket: Path) -> None:
    status = control.ask(socket, "status")
    for link in status["links"]:
        frames = f"{link['rx_frames']:,} frames in, {link['tx_frames']:,} out"
        drops = ", ".join(f"{k} {v}" for k, v in link["drops"].items()) or "none dropped"
        rows.append((f"link {link['link'].rpartition('/')[2]}", frames, drops))


def on_a_tap(lab: Lab, page: bytes) -> list[Row]:
    """Guest - tap vmnet1 - [vtl-bridge] - eth0 - server."""
    step("a guest on the host-only tap vmnet1, a web server in another network namespace")
    digest, rows = hashlib.sha256(page).hexdigest(), []
    host, server = lab.host("host"), lab.host("server")
    host.tap("vmnet1")
    lab.veth(host, "eth0", server, "eth0")
    server.addr("eth0", "10.9.0.2/24")
    host.addr("vmnet1", "10.9.0.254/24")
    lab.http(server, 80, {"page": page})
    guest = lab.guest("vm", on=host, tap="vmnet1", address="10.9.0.1/24")
    without = fetch(guest, "http://10.9.0.2/page")
    rows.append(("without vtl-bridge", "reached" if without else "no way out", "host-only, as it should be"))
    with bridge(lab, host, "vmnet1", "eth0") as (_, socket):
        start = time.monotonic()
        got = fetch(guest, "http://10.9.0.2/page")
        evidence(rows, guest, digest, got, time.monotonic() - start, len(page))
        counted(rows, socket)
        silent = guest.sh("ping -c1 -W1 10.9.0.254").status != 0
        rows.append(
            ("host's own stack", "silent" if silent else "ANSWERED A PING", "10.9.0.254 is the host's")
        )
        listing = host.run(Path(sys.executable).with_name("vtl-guard"), "list", "--json").stdout
        kept = sum(json.loads(line)["kept_in"] for line in listing.splitlines())
        rows.append(("guard", f"{kept:,} frames kept from the host's stack", "vtl-guard list"))
    after = fetch(guest, "http://10.9.0.2/page")
    rows.append(("after its end", "reached" if after else "no way out", ""))
    if got != digest or without or after or not silent:
        raise VTLError("demo: the guest's traffic did not take the way it should")
    return rows


def on_a_socket(lab: Lab, page: bytes) -> list[Row]:
    """Guest - QEMU socket - [vtl-bridge as an ordinary user] - tap of that user - network - server."""
    step("a guest on a QEMU socket; QEMU and vtl-bridge run as an ordinary user")
    digest, rows = hashlib.sha256(page).hexdigest(), []
    host, server = lab.host("uhost"), lab.host("userver")
    lab.veth(host, "eth0", server, "eth0")
    server.addr("eth0", "10.9.0.2/24")
    host.tap("net0", user=NOBODY)  # what an administrator grants once: a tap of the user's own
    lab.bridge(host, "br0", ["net0", "eth0"])
    lab.http(server, 80, {"page": page})
    sockets = lab.dir / "sockets"
    sockets.mkdir()
    sockets.chmod(0o777)
    with bridge(lab, host, f"qemu:unix:{sockets}/vm,server", "tap:net0", user=NOBODY) as (process, socket):
        guest = lab.guest(
            "uvm", on=host, qemu_socket=f"unix:{sockets}/vm", address="10.9.0.1/24", user=NOBODY
        )
        until(lambda: guest.sh("ping -c1 -W1 10.9.0.2").status == 0, "the guest to reach the server")
        start = time.monotonic()
        got = fetch(guest, "http://10.9.0.2/page")
        evidence(rows, guest, digest, got, time.monotonic() - start, len(page))
        counted(rows, socket)
        fields = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        )
        uid, capabilities = fields["Uid"].split()[0], int(fields["CapEff"], 16)
        rows.append(("vtl-bridge runs as", f"user {uid}, {capabilities:#x} capabilities", "no root needed"))
    if got != digest or uid != str(NOBODY) or capabilities:
        raise VTLError("demo: the guest's traffic did not take the way it should")
    return rows


def through_tor(lab: Lab) -> list[Row]:
    """Guest - tap vmnet2 - [vtl-tor] ... its tor - tor0 - relays - web site, onion service."""
    step("a guest with no setting at all but DHCP, vtl-tor, and a private Tor network of four relays")
    rows: list[Row] = []
    host = lab.host("torhost")
    host.tap("vmnet2")
    host.addr("vmnet2", "10.0.2.254/24")
    host.sysctl("net.ipv4.ip_forward", 1)  # so that it is the guard that keeps the guest in, not luck
    guest = lab.guest("torvm", on=host, tap="vmnet2", wait=False)
    began = time.monotonic()
    net = TorNetwork(lab, lab.host("world"), names={"www.example": SITES}, relays=4)
    text = secrets.token_hex(8)
    web = lab.http(net.site, 80, {"index.html": text.encode()})
    console.print(f"  four relays agree, after {time.monotonic() - began:.1f} s; an onion service comes up")
    onion = net.onion()
    with net.site.enter():
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind((SITES[0], 69))
        datagrams.setblocking(False)
    net.join(host)
    wire = lab.dir / "tor0.pcap"
    recording = host.popen("tcpdump", "-qUni", "tor0", "-w", wire, stderr=subprocess.DEVNULL)
    until(wire.exists, "tcpdump")
    torrc = lab.dir / "network.torrc"
    torrc.write_text(net.torrc_client())
    guest.ready()

    def get(name: str) -> str:
        console.print(f"  guest# wget -qO- http://{name}/", soft_wrap=True)
        return guest.sh(f"timeout 60 wget -qO- http://{name}/", timeout=70).out

    arguments = ("--iface", "vmnet2", "--start-tor", "--torrc", str(torrc), "--dhcp")
    with service(lab, host, "vtl-tor", *arguments) as (process, where):
        began = time.monotonic()
        while '"percent": 100' not in (line := process.stdout.readline()):
            if not line:
                raise VTLError("demo: vtl-tor ended before its tor was ready")
        rows.append(("guest", guest.sh("uname -srm").out.strip(), "a real kernel, in QEMU"))
        rows.append(
            ("tor of our own", f"ready {time.monotonic() - began:.1f} s after vtl-tor", "--start-tor")
        )
        console.print("  guest# udhcpc -i eth0")
        lease = guest.lease()
        said = f"{lease['ip']}/{lease['mask']}, router {lease['router']}, resolver {lease['dns']}"
        rows.append(("leased", said, "--dhcp; nothing is set in the guest"))
        by_name, by_onion = get("www.example"), get(onion)
        for what, got, name in ("page by name", by_name, "www.example"), ("page by .onion", by_onion, onion):
            stood = guest.sh(f"nslookup -type=a {name}").out.split()[-1]
            remark = f"as on the site; {stood} stood for it" if got == text else "NOT WHAT THE SITE HAS"
            rows.append((what, f"{got!r} from {name}", remark))
        seen = web.requests()[0].split()[0]
        exits = {address: nickname for nickname, pair in RELAYS.items() for address in pair}
        rows.append(("the site saw", seen, f"exit {exits.get(seen, 'WHICH IS NONE')}; host is 10.99.1.2"))
        pinged = guest.sh(f"ping -c2 -W1 {SITES[0]}").status == 0
        rows.append(("ping", "ANSWERED" if pinged else "goes nowhere", SITES[0]))
        console.print(f"  guest# ping -c2 {SITES[0]}; tftp -g -r page {SITES[0]}")
        guest.sh(f"timeout 3 tftp -g -r page {SITES[0]}")
        with suppress(BlockingIOError):
            raise VTLError(f"demo: a datagram of the guest's reached the site: {datagrams.recv(100)!r}")
        rows.append(("TFTP, over UDP", "goes nowhere", SITES[0]))
        status = control.ask(where, "status")
        drops = ", ".join(f"{reason} {n}" for reason, n in status["drops"].items())
        rows.append(("vtl-tor dropped", drops, "vtl-tor status"))
        process.kill()
        process.wait()
    escaped = reaches_out(guest)
    rows.append(
        ("after kill -9", "GOT OUT" if escaped else "no way out", "the guard stays: cut off, not exposed")
    )
    recording.terminate()
    recording.wait()
    datagrams.close()
    relays = " or ".join(f"host {address}" for address in exits if ":" not in address)
    packets = [
        len(host.run("tcpdump", "-qnr", wire, f"ip and {what}").stdout.splitlines())
        for what in (f"tcp and ({relays})", f"not (tcp and ({relays}))")
    ]
    rows.append(
        ("on the host's wire", f"{packets[0]:,} packets of TCP with relays", f"and {packets[1]} others")
    )
    if not (by_name == by_onion == text and seen in exits) or pinged or escaped or packets[1]:
        raise VTLError(f"demo: the guest's traffic did not take the way it should: {rows}")
    return rows


def reaches_out(guest: Guest) -> bool:
    """Let the guest try what only a host that answers, or forwards, could let it do."""
    directory = f"http://{RELAYS['ichi'][0]}:9030/tor/status-vote/current/consensus"
    return guest.sh(f"ping -c1 -W1 10.0.2.254 || timeout 3 wget -qO- {directory}").status == 0


def main() -> None:
    page = secrets.token_bytes(4 << 20)
    try:
        with Lab() as lab:
            parts = {
                "guest on a host-only tap": on_a_tap(lab, page),
                "guest on a QEMU socket, no root": on_a_socket(lab, page),
                "guest through Tor": through_tor(lab),
            }
    except VTLError as e:
        sys.exit(str(e))
    table = Table(title="Evidence", title_justify="left", width=108)
    for title in "", "what", "seen", "remark":
        table.add_column(title, overflow="fold")
    for part, rows in parts.items():
        for i, row in enumerate(rows):
            table.add_row(part if i == 0 else "", *row, end_section=i == len(rows) - 1)
    console.print(table)


if __name__ == "__main__":
    main()
