"""What `make demo` runs: a real Linux guest reaches a web server through vtl-bridge, in two ways.

First with the guest on a host-only tap, behind a guard. Then with the guest on a QEMU socket, and both
QEMU and vtl-bridge running as an ordinary user. Ends with a table of the evidence.
"""

import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from lab.guest import Guest
from lab.netns import Host, Lab
from lab.user import NOBODY, as_user
from lab.wait import until
from vtl_tools.common import control
from vtl_tools.common.errors import VTLError

console = Console(width=110)
Row = tuple[str, str, str]


def step(text: str) -> None:
    console.print(f"[bold]>[/] {text}")


@contextmanager
def bridge(lab: Lab, host: Host, *links: str, user: int | None = None) -> Iterator[tuple[Any, Path]]:
    """Run vtl-bridge on these links, as its user would."""
    socket = lab.dir / ("root" if user is None else "user") / "bridge.sock"
    socket.parent.mkdir(mode=0o700)
    if user is not None:
        os.chown(socket.parent, user, user)
    arguments = [word for link in links for word in ("--iface", link)]
    console.print(
        f"  $ vtl-bridge {' '.join(arguments)}" + (f"     [dim](as user {user})[/]" if user else "")
    )
    tool = (
        [Path(sys.executable).with_name("vtl-bridge")] if user is None else as_user(lab, host, "vtl-bridge")
    )
    process = host.popen(
        *tool, *arguments, "--control", socket, "--json", stdout=subprocess.PIPE, text=True, user=user
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    if '"ready"' not in ready:
        raise VTLError(f"demo: vtl-bridge did not start: {ready}")
    try:
        yield process, socket
    finally:
        process.terminate()
        process.wait(10)


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


def main() -> None:
    page = secrets.token_bytes(4 << 20)
    try:
        with Lab() as lab:
            parts = {
                "guest on a host-only tap": on_a_tap(lab, page),
                "guest on a QEMU socket, no root": on_a_socket(lab, page),
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
