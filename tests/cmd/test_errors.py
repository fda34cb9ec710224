"""What goes wrong is told in one line, with a status of its own; and a service lives through its clients."""

import json
import os
import pty
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.netns import Lab
from lab.user import NOBODY, as_user
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from tests.schemas import validated
from vtl_tools.common.runtime import control

QEMU = ("--iface", "qemu:unix:{tmp}/a,server", "--iface", "qemu:unix:{tmp}/b,server")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory with a short name, since the path of a socket has 107 octets at most."""
    with tempfile.TemporaryDirectory(prefix="vtl-") as name:
        yield Path(name)


@contextmanager
def bridge(tmp: Path, *arguments: str, stdout: int = subprocess.PIPE) -> Iterator["subprocess.Popen[str]"]:
    """Run vtl-bridge, until killed; its control sockets are in tmp unless it is told otherwise."""
    words = [word.format(tmp=tmp) for word in arguments]
    environment = {**os.environ, "VTL_RUN": str(tmp), "TERM": "xterm"}
    command, pipe = [BIN / "vtl-bridge", *words], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=stdout, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ran(tmp: Path, *arguments: str) -> tuple[int, str, str]:
    with bridge(tmp, *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


# --- what a user wrote

LINES = {
    "no such interface": (3, ["-i", "nope0", "-i", "nope1"], "nope0: no such network interface; list"),
    "no such directory": (3, ["-i", "qemu:unix:{tmp}/x/y", *QEMU[2:]], "there is no directory {tmp}/x"),
    "no such capture": (3, ["-i", "pcap:{tmp}/x", "-i", "pcap:{tmp}/y"], "{tmp}/x: No such file"),
    "no capture": (3, ["-i", f"pcap:{__file__}", *QEMU[2:]], "name a pcap or pcapng file"),
    "a recording nowhere": (3, [*QEMU, "--pcap", "{tmp}/x/y"], "--pcap: {tmp}/x/y: No such file"),
    "no such host": (3, ["-i", "qemu:nohost.invalid:5", *QEMU[2:]], "nohost.invalid: "),
    "the same twice": (2, ["-i", "eth0", "-i", "eth0"], "eth0: given twice"),
    "no kind": (2, ["-i", "bogus:x", "-i", "b"], "'bogus' is no kind of link"),
    "no address": (2, ["-i", "qemu:", "-i", "b"], "'' is not an address; write qemu:unix:PATH"),
    "no port": (2, ["-i", "qemu:h:99999", "-i", "b"], "'99999' is not a port"),
    "no IPv6 address": (2, ["-i", "qemu:[::1:5", "-i", "b"], "'[::1:5' is not an address"),
    "no network": (2, ["-i", "vxlan:h/16777216", "-i", "b"], "'16777216' is not a network identifier"),
    "no local address": (2, ["-i", "dgram:unix:/x", "-i", "b"], "needs a local address"),
    "no speed": (2, ["-i", "pcap:x,speed=quick", "-i", "b"], "'quick' is not a speed"),
    "no option": (2, ["-i", "channel:/x,sever", "-i", "b"], "'sever' is no option of this link"),
    "a long path": (2, ["-i", f"channel:/{'x' * 107}", "-i", "b"], "exceeds 107 octets"),
    "an empty name": (2, ["-i", "", "-i", "b"], "'' is not an interface name"),
    "a long name": (2, ["-i", "a" * 16, "-i", "b"], "up to 15 octets"),
    "two lines": (2, ["-i", "a\nb", "-i", "b"], "unprintable characters"),
    "workers of a stream": (2, [*QEMU, "--workers", "2"], "not an interface; --workers needs interfaces"),
    "nothing runs": (6, ["status"], "no service runs here"),
    "nothing runs there": (6, ["status", "--link", "eth0"], "{tmp}/vtl-bridge-eth0.sock: no service answers"),
    "a socket that is a file": (1, [*QEMU, "--control", "{tmp}/file"], "exists and is not a socket"),
    "a socket in a file": (1, [*QEMU, "--control", "{tmp}/file/x"], "no socket: "),
    "a long control path": (1, [*QEMU, "--control", "{tmp}/" + "x" * 107], "no socket: "),
}

USAGE = {
    "no link": ([], "give --iface twice or more, or --iface and --uplink: a bridge joins links"),
    "one link": (
        ["-i", "eth0"],
        "give --iface twice or more, or --iface and --uplink: a bridge joins links",
    ),
    "half of three": (["--half-duplex", "-i", "a", *QEMU], "--half-duplex joins exactly two links: give two"),
    "no worker": ([*QEMU, "--workers", "0"], "invalid value for '--workers': 0 is not in the range"),
    "a number in words": ([*QEMU, "--spin", "long"], "invalid value for '--spin': 'long' is not a valid"),
    "no guard": ([*QEMU, "--guard", "dog"], "invalid value for '--guard': 'dog' is not one of"),
    "no such option": (["--ifaces", "a"], "no such option '--ifaces'"),
    "no such verb": (["stats"], "no such command 'stats'"),
}


@pytest.mark.parametrize(("code", "arguments", "said"), LINES.values(), ids=LINES)
def test_an_error_is_one_line_and_a_status(
    tmp_path: Path, code: int, arguments: list[str], said: str
) -> None:
    (tmp_path / "file").touch()
    status, out, err = ran(tmp_path, *arguments)
    assert (status, out) == (code, "")
    assert err.startswith("vtl-bridge: ")
    assert said.format(tmp=tmp_path) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "said"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_one_line_too_and_status_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    status, out, err = ran(tmp_path, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("vtl-bridge: ")
    assert err.endswith(" see 'vtl-bridge --help'\n")
    assert said in err


@pytest.mark.parametrize(
    ("code", "arguments"),
    [(code, arguments) for code, arguments, _ in LINES.values()]
    + [(2, words) for words, _ in USAGE.values()],
    ids=[*LINES, *USAGE],
)
def test_an_error_is_an_event_under_json(tmp_path: Path, code: int, arguments: list[str]) -> None:
    (tmp_path / "file").touch()
    status, out, err = ran(tmp_path, *arguments, "--json")
    event = validated(json.loads(out))
    assert (event["tool"], event["event"], event["exit"]) == ("vtl-bridge", "error", code)
    assert status == code
    assert err.rstrip("\n").endswith(event["error"])


def test_nothing_is_left_behind_by_what_failed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    assert ran(tmp_path, *QEMU, "--control", str(precious))[0] == 1
    assert ran(tmp_path, *QEMU[:2], "-i", "nope0")[0] == 3
    assert ran(tmp_path, *QEMU[:2], "-i", f"qemu:unix:{precious},server")[0] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert precious.read_text() == "kept"


def test_a_reader_that_leaves_is_no_error_to_speak_of(tmp_path: Path) -> None:
    with service(tmp_path):
        command = f"'{BIN}/vtl-bridge' status --json | true"
        shell = ["bash", "-c", f"for i in 1 2 3; do {command}; done"]
        environment = {**os.environ, "VTL_RUN": str(tmp_path)}
        done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""


def test_results_for_a_full_disk_are_an_error_in_one_line(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("allow any\n")
    for tool, *words in ("vtl-fw", "check", "--json", str(rules)), ("vtl-bridge", "--help"):
        with Path("/dev/full").open("w") as full:
            ran = subprocess.run(
                [BIN / tool, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert ran.returncode == 1
        problem = "standard output: No space left on device; free space on its file system"
        assert ran.stderr == f"{tool}: {problem}\n"
        with Path("/dev/full").open("w") as full:
            ran = subprocess.run([BIN / tool, "no-verb"], stderr=full, check=False)
        assert ran.returncode == 2


@pytest.mark.lab
def test_what_is_not_permitted_has_a_status_of_its_own(lab: Lab) -> None:
    host = lab.host("host")
    lab.veth(host, "vmnet1", host, "eth0")
    run = lab.dir / "run"
    run.mkdir(mode=0o700)
    os.chown(run, NOBODY, NOBODY)
    tool = ["env", f"VTL_RUN={run}", *as_user(lab, host, "vtl-bridge")]
    cases = {
        ("-i", "vmnet1", "-i", "eth0"): "vmnet1: not permitted to lock the interface; run as root",
        ("-i", "vmnet1", "-i", "eth0", "--guard", "off"): "vmnet1: not permitted to lock the interface",
        ("-i", "tap:t0", "-i", "eth0"): "not permitted to",
        ("-i", "libpcap:vmnet1", "-i", f"channel:{run}/x"): "not permitted to lock the interface",
        ("-i", f"channel:{lab.dir}/x,server", "-i", f"channel:{run}/x"): "Permission denied",
    }
    for arguments, said in cases.items():
        done = host.run(*tool, *arguments, user=NOBODY, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (5, 1), done.stderr
        assert said in done.stderr


# --- a service and its control socket


@contextmanager
def service(tmp: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A bridge that runs between two sockets, to which nobody has connected."""
    with bridge(tmp, *QEMU, "--json", *arguments) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert '"ready"' in first, process.communicate()
        yield process


def path_of(tmp: Path) -> Path:
    (path,) = tmp.glob("vtl-bridge-*.sock")
    return path


def alive(tmp: Path) -> bool:
    return bool(control.ask(path_of(tmp), "status")["service"] == "vtl-bridge")


def connect(tmp: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    sock.connect(str(path_of(tmp)))
    return sock


def test_what_a_killed_service_left_is_replaced(tmp_path: Path) -> None:
    where = ("--control", "{tmp}/vtl-bridge-x.sock")
    with service(tmp_path, *where) as first:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        for broker in map(int, children):
            os.kill(broker, signal.SIGKILL)
        first.kill()
        first.wait()
    left = ["a", "b", "vtl-bridge-x.run", "vtl-bridge-x.sock"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    status, out, _ = ran(tmp_path, "status")
    assert (status, out.split("\t")[:3]) == (7, ["vtl-bridge", str(first.pid), "died"])
    with service(tmp_path, *where) as second:
        assert alive(tmp_path)
        second.terminate()
        assert second.wait(PATIENCE_S) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_control_socket_of_a_live_service_is_not_taken(tmp_path: Path) -> None:
    links = ["-i", f"channel:{tmp_path}/c,server", "-i", f"channel:{tmp_path}/d,server"]
    with service(tmp_path, "--control", "{tmp}/vtl-bridge-x.sock"):
        status, _, err = ran(tmp_path, *links, "--control", str(path_of(tmp_path)))
        assert status == 1
        assert err.endswith("a service already runs there; stop it, or choose another with --control\n")
        assert alive(tmp_path)


def test_a_link_that_a_live_service_serves_is_not_taken(tmp_path: Path) -> None:
    with service(tmp_path):
        status, _, err = ran(tmp_path, *QEMU, "--control", "{tmp}/other.sock")
        assert status == 3
        assert "another process serves" in err
        assert alive(tmp_path)


def test_a_directory_where_others_write_holds_no_control_socket(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o777)
    status, _, err = ran(tmp_path, *QEMU, "--control", f"{run}/x.sock")
    assert status == 1
    assert "other users may write there; set VTL_RUN to a directory of your own" in err


def test_the_control_socket_is_for_its_owner(tmp_path: Path) -> None:
    with service(tmp_path):
        assert path_of(tmp_path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"garbage\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"{}\n",
        b'{"verb": []}\n',
        b'{"verb": "__init__"}\n',
        b'{"verb": "status"',
        b'{"verb": "\\ud800"}\n',
        b"[" * 60000 + b"\n",
        b"9" * 60000 + b"\n",
        b"null\x00\n",
    ],
    ids=range(12),
)
def test_a_request_that_is_none_is_refused_and_the_service_lives(tmp_path: Path, line: bytes) -> None:
    with service(tmp_path) as process:
        with connect(tmp_path) as sock:
            sock.sendall(line)
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as answers:
                said = answers.read()
        if line.endswith(b"\n"):
            assert json.loads(said) == {"ok": False, "error": "not a request; the verbs are events, status"}
        else:
            assert said == b""
        assert alive(tmp_path)
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in err


def test_several_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    with service(tmp_path), connect(tmp_path) as sock, sock.makefile("rb") as answers:
        sock.sendall(b'{"verb": "status"}\n{"verb": "frob"}\n{"verb": "status"}\n')
        assert [json.loads(answers.readline())["ok"] for _ in range(3)] == [True, False, True]


def test_an_endless_line_ends_the_client_only(tmp_path: Path) -> None:
    with service(tmp_path) as process:
        before = resident_octets(process.pid)
        with connect(tmp_path) as sock, pytest.raises(ConnectionError):
            sock.sendall(bytes(64 << 20))
        assert alive(tmp_path)
        assert resident_octets(process.pid) - before < 8 << 20


def test_clients_that_say_nothing_keep_no_frame_waiting_and_leave_no_trace(tmp_path: Path) -> None:
    with service(tmp_path) as process:
        before = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(connect(tmp_path))
            ends = []
            for name in "ab":
                end = stack.enter_context(socket.socket(socket.AF_UNIX))
                end.settimeout(PATIENCE_S)
                end.connect(str(tmp_path / name))
                ends.append(end)
            frame = (60).to_bytes(4, "big") + bytes(60)
            until(lambda: goes_through(ends, frame), "a frame to pass")
        until(lambda: asks(tmp_path), "the service to answer again")
        # but the two links themselves, whose other ends have gone as well
        until(
            lambda: len(list(Path(f"/proc/{process.pid}/fd").iterdir())) <= before, "the clients to be gone"
        )


def goes_through(ends: list[socket.socket], frame: bytes) -> bool:
    ends[0].sendall(frame)
    ends[1].settimeout(0.2)
    try:
        return ends[1].recv(len(frame), socket.MSG_WAITALL) == frame
    except TimeoutError:
        return False


def asks(tmp: Path) -> bool:
    return ran(tmp, "status", "--json")[0] == 0


def test_a_client_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    with service(tmp_path) as process, connect(tmp_path) as sock:
        before = resident_octets(process.pid)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.sendall(b'{"verb": "status"}\n' * (1 << 20))
        assert alive(tmp_path)
        assert resident_octets(process.pid) - before < 8 << 20


def resident_octets(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_status_watch_that_is_interrupted_ends_with_130(tmp_path: Path) -> None:
    terminal, its_end = pty.openpty()
    with service(tmp_path), bridge(tmp_path, "status", "--watch", stdout=its_end) as watching:
        assert os.read(terminal, 1)  # it draws
        watching.send_signal(signal.SIGINT)
        assert watching.wait(PATIENCE_S) == 130
    os.close(its_end)
    os.close(terminal)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_service_that_is_ended_says_what_it_did(tmp_path: Path, number: int, code: int) -> None:
    with service(tmp_path) as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stderr is not None
        # Not communicate(): it would leave out what came in one read with the first line.
        events = [json.loads(line) for line in process.stdout]
        assert [event["event"] for event in events] == ["link", "link", "stats"]
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE_S) == code
