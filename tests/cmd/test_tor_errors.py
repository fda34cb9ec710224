"""What goes wrong with vtl-tor is told in one line that says what to do, before any guest is let anywhere.

No tor is started here but in hosts of the lab: one outside would reach the Internet.
"""

import json
import os
import pty
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.netns import Lab
from lab.user import NOBODY, as_user
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from tests.proxy import proxy
from vtl_tools.common.errors import VTLError
from vtl_tools.services.tor.process import TorProcess
from vtl_tools.services.tor.progress import BootstrapProgress
from vtl_tools.services.tor.stage import Tor

TOOL = BIN / "vtl-tor"
PIPE = subprocess.PIPE
LINK = ("-i", "channel:{tmp}/c,server")


@pytest.fixture
def tmp() -> Iterator[Path]:
    """A directory with a short name, as the paths of sockets need."""
    with tempfile.TemporaryDirectory(prefix="vtl-") as name:
        yield Path(name)


def ran(tmp: Path, *arguments: str) -> tuple[int, str, str]:
    words = [word.format(tmp=tmp) for word in arguments]
    environment = {**os.environ, "VTL_RUN": str(tmp)}
    done = subprocess.run(
        [TOOL, *words], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode, done.stdout, done.stderr


LINES = {
    "no such interface": (3, ["-i", "nope0", "--no-check"], "nope0: no such network interface; list them"),
    "nobody listens": (1, [*LINK, "--socks", "127.0.0.1:1"], "127.0.0.1:1: Connection refused; start tor"),
    "nobody listens by IPv6": (1, [*LINK, "--socks", "[::1]:1"], "[::1]:1: Connection refused; start tor"),
    "no socket": (1, [*LINK, "--socks", "unix:{tmp}/x"], "unix:{tmp}/x: No such file or directory; start"),
    "no such host": (1, [*LINK, "--socks", "nohost.invalid:9"], "nohost.invalid:9: "),
    "a recording nowhere": (3, [*LINK, "--no-check", "--pcap-dropped", "{tmp}/x/y"], "{tmp}/x/y: No such"),
    "nothing runs": (6, ["status"], "no service runs here"),
    "nothing to renew": (6, ["newnym"], "no service runs here"),
    "no flows": (6, ["flows", "--link", "eth9"], "{tmp}/vtl-tor-eth9.sock: no service answers"),
    "nobody to check": (1, ["check", "--socks", "127.0.0.1:1"], "127.0.0.1:1: Connection refused; start"),
}

USAGE = {
    "no link": ([], "give --iface: the interface that the guest is behind"),
    "no proxy": ([*LINK, "--socks", "nonsense"], "write HOST:PORT or unix:PATH, such as 127.0.0.1:9050"),
    "no port": ([*LINK, "--socks", "h:99999"], "write HOST:PORT or unix:PATH"),
    "an empty path": ([*LINK, "--socks", "unix:"], "write HOST:PORT or unix:PATH"),
    "a torrc for nobody": ([*LINK, "--torrc", __file__], "--torrc configures the tor of --start-tor"),
    "no torrc": ([*LINK, "--start-tor", "--torrc", "{tmp}/x"], "File '{tmp}/x' does not exist"),
    "two proxies": ([*LINK, "--start-tor", "--socks", "127.0.0.1:1"], "--start-tor takes the place of"),
    "no network": ([*LINK, "--dhcp", "--subnet", "x"], "write a network such as 10.0.2.0/24"),
    "a host": ([*LINK, "--dhcp", "--subnet", "10.0.0.1/24"], "10.0.0.1/24 has host bits set; write a"),
    "a small network": ([*LINK, "--dhcp", "--subnet", "10.0.0.0/30"], "write a network of 8 to 29 bits"),
    "the map's": (
        [*LINK, "--dhcp", "--subnet", "198.18.0.0/24"],
        "198.18.0.0/15, the addresses that vtl-tor",
    ),
    "loopback": ([*LINK, "--dhcp", "--subnet", "127.0.0.0/8"], "loopback addresses; write a network"),
    "multicast": ([*LINK, "--dhcp", "--subnet", "239.0.0.0/8"], "multicast and reserved addresses"),
    "a network for nobody": ([*LINK, "--subnet", "10.5.0.0/24"], "what --dhcp leases from: give both"),
    "no isolation": ([*LINK, "--isolate", "x"], "invalid value for '--isolate': 'x' is not one of"),
    "no memory": ([*LINK, "--memory", "0"], "invalid value for '--memory': 0 is not in the range"),
}


@pytest.mark.parametrize(("code", "arguments", "said"), LINES.values(), ids=LINES)
def test_an_error_is_one_line_and_a_status(tmp: Path, code: int, arguments: list[str], said: str) -> None:
    status, out, err = ran(tmp, *arguments)
    assert (status, out, err.count("\n")) == (code, "", 1), err
    assert err.startswith("vtl-tor: ")
    assert said.format(tmp=tmp) in err


@pytest.mark.parametrize(("arguments", "said"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_one_line_and_status_2(tmp: Path, arguments: list[str], said: str) -> None:
    status, out, err = ran(tmp, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert said.format(tmp=tmp) in err
    assert err.endswith(" see 'vtl-tor --help'\n")


def test_an_address_to_check_that_cannot_be_asked_is_wrong_usage(tmp: Path) -> None:
    with proxy(tmp / "p", b"\5\0", b"\5\1\0\1\0\0\0\0\0\0") as socks:
        status, _, err = ran(tmp, "check", "--socks", socks, "--url", "https://x.example/")
    assert status == 2
    assert err == (
        "vtl-tor: https://x.example/: not an address that can be asked; write one that begins with http://\n"
    )


def test_a_server_that_is_no_proxy_is_told_from_one(tmp: Path) -> None:
    with proxy(tmp / "p", b"HTTP/1.0 400 Bad Request\r\n\r\n") as socks:
        status, _, err = ran(tmp, *LINK, "--socks", socks)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{socks}: does not speak SOCKS 5: " in err
    assert err.endswith("; name Tor's SOCKS port\n")


def test_a_proxy_without_passwords_cannot_isolate(tmp: Path) -> None:
    with proxy(tmp / "p", b"\5\xff") as socks:
        status, _, err = ran(tmp, *LINK, "--socks", socks)
    assert (status, err) == (1, f"vtl-tor: {socks}: takes no user and password; give --isolate none\n")


def test_a_proxy_that_is_not_tor_is_used_with_a_warning(tmp: Path) -> None:
    with proxy(tmp / "p", b"\5\0", b"\5\1\0\1\0\0\0\0\0\0") as socks:
        words = [word.format(tmp=tmp) for word in LINK]
        command = [TOOL, *words, "--socks", socks, "--isolate", "none", "--json"]
        environment = {**os.environ, "VTL_RUN": str(tmp)}
        with subprocess.Popen(command, env=environment, stdout=PIPE, stderr=PIPE, text=True) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "ready"
            status, _, err = ran(tmp, *LINK, "--socks", socks, "--isolate", "none", "--no-check")
            assert status == 3  # the link's own socket comes before the control socket
            assert "another process serves" in err
            status, _, err = ran(
                tmp, "-i", "channel:{tmp}/d,server", "--no-check", "--control", str(next(tmp.glob("*.sock")))
            )
            assert status == 1
            assert err.endswith("a service already runs there; stop it, or choose another with --control\n")
            process.terminate()
            _, err = process.communicate(timeout=PATIENCE_S)
    told = f"vtl-tor: {socks}: answers, and is not Tor: it sees where the guest goes"
    assert err.splitlines()[0].partition(" ")[2] == told  # behind a time stamp


def test_a_machine_without_tor_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(VTLError, match=r"^tor: not found; install it .*, or name one that runs with --socks"):
        TorProcess()


@pytest.mark.lab
def test_what_is_not_permitted_has_a_status_of_its_own(lab: Lab) -> None:
    host = lab.host("host")
    host.tap("vmnet1")
    run = lab.dir / "run"
    run.mkdir(mode=0o700)
    os.chown(run, NOBODY, NOBODY)
    command = ["env", f"VTL_RUN={run}", *as_user(lab, host, "vtl-tor"), "-i", "vmnet1", "--no-check"]
    done = host.run(*command, user=NOBODY, check=False)
    assert (done.returncode, done.stderr) == (
        5, "vtl-tor: vmnet1: not permitted to lock the interface; run as root or with CAP_NET_ADMIN\n",
    )  # fmt: skip


@pytest.mark.lab
def test_a_second_service_of_an_interface_does_not_start_and_does_no_harm(lab: Lab) -> None:
    host, guest = lab.host("host", ipv6=False), lab.host("guest", ipv6=False)
    lab.veth(guest, "eth0", host, "vmnet1")
    guest.addr("eth0", "10.0.2.9/24")
    host.addr("vmnet1", "10.0.2.254/24")
    run = lab.dir / "run"
    run.mkdir(mode=0o700)
    command = ("env", f"VTL_RUN={run}", TOOL, "-i", "vmnet1", "--no-check", "--json")
    with host.popen(*command, stdout=PIPE, text=True) as first:
        assert '"ready"' in first.stdout.readline()
        done = host.run(*command, check=False)
        assert done.returncode == 1
        assert re.fullmatch(
            r"vtl-tor: vmnet1: vtl-tor \(process \d+\) already serves this interface; stop it first\n",
            done.stderr,
        )
        asked = guest.run("busybox", "nslookup", "-type=a", "www.example.com", "10.0.2.2").stdout
        assert "198.1" in asked
        assert guest.run("ping", "-c1", "-W1", "10.0.2.254", check=False).returncode == 1
        first.terminate()
    assert guest.run("ping", "-c1", "-W1", "10.0.2.254", check=False).returncode == 1


@pytest.mark.lab
@pytest.mark.tor
def test_a_torrc_that_tor_refuses_is_told_in_tors_words(lab: Lab) -> None:
    host = lab.host("host")
    host.tap("vmnet1")
    torrc = lab.dir / "torrc"
    torrc.write_text("NoSuchOption 1\n")
    arguments = ("-i", "vmnet1", "--start-tor", "--torrc", torrc, "--control", lab.dir / "s.sock")
    done = host.run(TOOL, *arguments, check=False)
    assert done.returncode == 1
    guarded, said = done.stderr.splitlines()
    assert "vtl-tor: vmnet1: stays guarded, and its guest cut off; " in guarded
    assert "vtl-tor: tor: ended with status 1: " in said
    assert "NoSuchOption" in said
    assert said.endswith("; see all that it says with -vv")


# --- how far tor is, on a terminal


def shown(monkeypatch: pytest.MonkeyPatch, *, is_drawn: bool = False) -> str:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", 0) as reader:
        monkeypatch.setattr("sys.stderr", terminal)
        show = BootstrapProgress(Tor(("127.0.0.1", 9050)), quiet=is_drawn)
        for percent, what in (0, "Starting"), (45, "Asking for relay descriptors"), (100, "Done"):
            show(percent, what)
        terminal.flush()
        terminal.write("$ ")
        terminal.flush()
        seen = ""
        while not seen.endswith("$ "):
            seen += reader.read(4096).decode()
        return seen


def test_progress_is_one_line_that_ends_when_tor_is_ready(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # whatever -v has set before
    assert shown(monkeypatch) == (
        "\x1b[Ktor:   0 % Starting\r"
        "\x1b[Ktor:  45 % Asking for relay descriptors\r"
        "\x1b[Ktor: 100 % Done\r\n$ "
    )


def test_progress_leaves_the_terminal_to_the_table(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    assert shown(monkeypatch, is_drawn=True) == "$ "


def test_progress_is_a_log_line_a_step_where_the_log_is_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert shown(monkeypatch) == "$ "
    assert [record.getMessage() for record in caplog.records] == [
        "tor: 0 %: Starting", "tor: 45 %: Asking for relay descriptors", "tor: 100 %: Done",
    ]  # fmt: skip


# --- the table


def test_status_and_the_live_table_show_all_that_is_counted(tmp: Path) -> None:
    words = [word.format(tmp=tmp) for word in LINK]
    environment = {**os.environ, "VTL_RUN": str(tmp), "COLUMNS": "120"}
    with subprocess.Popen([TOOL, *words, "--no-check"], env=environment, stderr=PIPE) as process:
        until(lambda: list(tmp.glob("vtl-tor-*.sock")), "the control socket")
        status, out, err = ran(tmp, "status")
        assert (status, err) == (0, "")
        for word in "socks", "identity", "opened", "failed", "octets_up", "held", "queries":
            assert re.search(rf"\t{word}=\S", out), word
        found = json.loads(ran(tmp, "status", "--json")[1])
        assert set(found) >= {"tor", "connections", "carried", "dns"}
        assert ran(tmp, "newnym") == (0, "", "identity 1\n")
        assert ran(tmp, "flows", "--json") == (0, "", "")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
