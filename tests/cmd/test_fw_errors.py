"""Rule files and clients that mean ill: one line says what is wrong, and a firewall that runs goes on."""

import fcntl
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from vtl_tools.common.errors import VTLError
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rules.position import ERRORS_MAX
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.sealed_file import SEALS, SealedFile
from vtl_tools.services.fw.files import PACKED_MAX, pack
from vtl_tools.services.fw.parser import DEPTH_MAX, FILES_MAX

MEMORY = 512 << 20
"""Octets of address space that a command may have."""
RULES = "allow out udp port 53\ndeny any\n"
VM, PEER = address.ip("10.0.0.5"), address.ip("192.0.2.1")
MACS = {"src_mac": address.mac("52:54:00:00:00:01"), "dst_mac": address.mac("52:54:00:00:00:02")}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory with a short name, since the path of a socket has 107 octets at most."""
    with tempfile.TemporaryDirectory(prefix="vtl-") as name:
        yield Path(name)


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def fw(tmp: Path, *arguments: str | Path, stdin: int = subprocess.DEVNULL, code: int = 2) -> tuple[str, str]:
    """Run vtl-fw to its end, with little memory; what it printed."""
    environment = {**os.environ, "VTL_RUN": str(tmp), "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [BIN / "vtl-fw", *arguments], cwd=tmp, env=environment, stdin=stdin, capture_output=True, text=True,
        timeout=PATIENCE_S, preexec_fn=limited, check=False,
    )  # fmt: skip
    assert ran.returncode == code, ran.stderr
    return ran.stdout, ran.stderr


def check(tmp: Path, file: str | Path, *, stdin: int = subprocess.DEVNULL) -> str:
    """The errors of a rule file, a line each."""
    out, err = fw(tmp, "check", file, stdin=stdin)
    assert out == ""
    assert 1 <= err.count("\n") <= ERRORS_MAX + 1
    assert all(line.isprintable() and len(line) < 1000 for line in err.splitlines())
    return err


# --- rule files


def write(tmp: Path, text: str | bytes) -> Path:
    path = tmp / "x.rules"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (b"allow out tcp port 80 to 10.0.0.0/8\n", "1:1: expected at most 16 MiB of rules; "),
        (b"# nothing\n", "1:1: expected at most 16 MiB of rules; "),
        (b"\0", "1:1: expected at most 16 MiB of rules; "),
        (b"\xff", "1:1: expected at most 16 MiB of rules; "),
        (b"allow ", "1:1: expected at most 16 MiB of rules; "),
    ],
    ids=["rules", "comments", "zeros", "ones", "one line"],
)
def test_a_file_of_64_mib_is_refused_without_being_read(tmp_path: Path, piece: bytes, said: str) -> None:
    path = write(tmp_path, piece * ((64 << 20) // len(piece)))
    assert check(tmp_path, path) == f"vtl-fw: {path}:{said}{path} is more\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\0" * 1000, ":1:1: expected text, not an octet of zeros\n"),
        (b"deny any\n\0", ":2:1: expected text, not an octet of zeros\n"),
        (bytes(range(1, 256)) * 100, ": expected "),
        (b"deny any # " + b"x" * (1 << 20), ":1:16385: expected a line of at most 16384 characters"),
        (b"\n" * 1_000_001, ":1:1: expected at most 1000000 lines of rules"),
        (b"deny any\n" * 100_001, ":100001:1: expected at most 100000 rules\n"),
        (b"set @a = { " + b"{" * 10_000, ":1:12: expected "),
        (b"set @a = {\n" + b"1.1.1.1\n" * 500_001, ": expected at most 500000 items in all sets"),
        (b"set @a = @a\ndeny", ":1:10: expected another set, as @a cannot hold itself\n"),
        (b"set @a = { @b }\nset @b = @a\ndeny", ":1:12: expected a set that is defined above; @b is not\n"),
        (b"include \"x.rules\"\ndeny", ":1:9: expected another file: "),
        (b"include \"./y/../x.rules\"\ndeny", ":1:9: expected another file: "),
        (b"include \"nope\"\ndeny", ":1:9: expected a file that can be read: "),
        (b"include \"/\"\ndeny", ":1:9: expected a file that can be read: /: Is a directory\n"),
        (b"include \"\"\ndeny", ":1:9: expected a file name in \"quotes\""),
        (b"", ":1:1: expected a last rule for all else that goes out, such as 'deny any'\n"),
        (b"allow out to empty", ":1:14: expected an IP address"),
        (b"set @a = empty\nallow out to @a\n", ":3:1: expected a last rule for all else"),
        (b"allow out to ::/0\n", ":2:1: expected a last rule for all else"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: bytes, said: str) -> None:
    path = write(tmp_path, text)
    err = check(tmp_path, path)
    assert err.startswith(f"vtl-fw: {path}:")
    assert said in err


def test_files_that_include_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('include "b"\ndeny\n')
    (tmp_path / "b").write_text('include "a"\n')
    assert "b:1:9: expected another file: a is the one that includes this" in check(tmp_path, "a")


def test_a_file_that_includes_itself_by_many_names_ends(tmp_path: Path) -> None:
    """Links are names that cannot be told from files: two of them would double the files at each step."""
    text = "".join(f'include "l{i}/x.rules"\n' for i in range(2))
    write(tmp_path, f"{text}deny\n")
    for i in range(2):
        (tmp_path / f"l{i}").symlink_to(".")
    assert f"expected at most {DEPTH_MAX} files within each other" in check(tmp_path, "x.rules")


def test_very_many_files_are_too_many(tmp_path: Path) -> None:
    for i in range(FILES_MAX + 1):
        (tmp_path / f"f{i}").write_text("")
    write(tmp_path, "".join(f'include "f{i}"\n' for i in range(FILES_MAX + 1)))
    assert f"expected at most {FILES_MAX} files" in check(tmp_path, "x.rules")


@pytest.mark.parametrize("endless", ["/dev/zero", "/dev/urandom", "/dev/full"])
def test_a_device_without_end_is_a_file_that_is_too_large(tmp_path: Path, endless: str) -> None:
    assert f"{endless}:1:1: expected at most 16 MiB" in check(tmp_path, endless)
    path = write(tmp_path, f'include "{endless}"\ndeny\n')
    assert f"{path}:1:9: expected at most 16 MiB" in check(tmp_path, path)


@contextmanager
def talking(text: str, where: Path | None = None) -> Iterator[int]:
    """What yes(1) says, without end; at a pipe, or at a FIFO."""
    out = subprocess.PIPE if where is None else os.open(where, os.O_RDWR)
    with subprocess.Popen(["yes", text], stdout=out) as process:
        try:
            yield -1 if process.stdout is None else process.stdout.fileno()
        finally:
            process.kill()
            if where is not None:
                os.close(out)


@pytest.mark.parametrize("text", ["allow out any", "", "x" * 1000, "\x01"])
def test_a_pipe_without_end_is_a_file_that_is_too_large(tmp_path: Path, text: str) -> None:
    with talking(text) as pipe:
        assert "<stdin>:1:1: expected at most 16 MiB" in check(tmp_path, "-", stdin=pipe)


def test_a_fifo_without_end_is_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with talking("allow out any", path):
        assert f"{path}:1:1: expected at most 16 MiB" in check(tmp_path, path)


def test_a_firewall_with_a_wrong_file_does_not_start(tmp_path: Path) -> None:
    path = write(tmp_path, "allow out any\ndeny in\nalow out\n")
    links = ("--iface", f"qemu:unix:{tmp_path}/a,server", "--uplink", f"qemu:unix:{tmp_path}/b,server")
    _, err = fw(tmp_path, *links, "--rules", path)
    expected = (
        "expected a rule (allow, deny or reject), 'set' or 'include', not 'alow'; did you mean 'allow'?"
    )
    assert err == f"vtl-fw: {path}:3:1: {expected}\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--dhcp-server", "10.0.0"),
            "'10.0.0': not the IPv4 address of a host; write an address such as 192.0.2.1",
        ),
        (("--dhcp-server", "::1"), "'::1': not the IPv4 address of a host"),
        (("--dhcp-server", "255.255.255.255"), "not the IPv4 address of a host"),
        (("--dhcp-server", "10.0.0.1", "--spoofing"), "leave --mac, --address, --dhcp-server and --vm out"),
    ],
)
def test_a_dhcp_server_is_a_host_that_the_vm_asks(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", write(tmp_path, RULES))
    assert said in fw(tmp_path, *links, *arguments)[1]


def test_a_large_file_that_is_right_is_taken(tmp_path: Path) -> None:
    lines = [f"deny out tcp to 10.{i >> 8 & 255}.{i & 255}.0/24 port {i % 65535 + 1}" for i in range(9_999)]
    text = "\n".join([*lines, "deny any"])
    out, err = fw(tmp_path, "check", write(tmp_path, text + "\n" + "# x\n" * 800_000), code=0)
    assert err.endswith("x.rules: 10000 rules, 0 warnings\n")
    assert out == ""


# --- clients


class Service:
    """A firewall between two of QEMU's sockets, of which we are the other ends."""

    def __init__(self, tmp: Path, stack: ExitStack) -> None:
        self.tmp, self.path = tmp, tmp / "vtl-fw-x.sock"
        self.rules = write(tmp, RULES)
        links = ("--iface", f"qemu:unix:{tmp}/a,server", "--uplink", f"qemu:unix:{tmp}/b,server")
        command = [BIN / "vtl-fw", *links, "--rules", self.rules, "--address", "10.0.0.5", "--json"]
        self.process = stack.enter_context(
            subprocess.Popen(
                [*command, "--control", self.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        stack.callback(self.process.kill)
        assert self.process.stdout is not None
        assert '"ready"' in self.process.stdout.readline()
        self.vm, self.network = (stack.enter_context(self.connect(tmp / name)) for name in "ab")
        self.port = 1000
        until(lambda: all(link["up"] for link in control.ask(self.path, "status")["links"]), "the links")

    @staticmethod
    def connect(path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
        return sock

    def client(self) -> socket.socket:
        """Who asks at the control socket."""
        return self.connect(self.path)

    def holds(self) -> bool:
        """Whether what the rules allow passes, and what they deny does not, which was sent before it."""
        self.port += 1
        frames = [
            build.udp(**MACS, src=VM, dst=PEER, sport=self.port, dport=port, payload=b"x" * 40)[VNET:]
            for port in (54, 53)
        ]
        for frame in frames:
            self.vm.sendall(len(frame).to_bytes(4, "big") + frame)
        got = self.network.recv(4 + len(frames[1]), socket.MSG_WAITALL)
        return got[4:] == frames[1]

    def resident(self) -> int:
        """Octets of memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )

    def reload(self, text: str) -> int:
        """Have it take rules; how many they are."""
        with SealedFile.of(pack({str(self.rules): text.encode()})) as upload:
            return self.reload_from(upload)

    def reload_from(self, upload: SealedFile) -> int:
        answer = control.ask(self.path, "reload", patience_s=60.0, upload=upload, file=str(self.rules))
        return int(answer["rules"])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with ExitStack() as stack:
        running = Service(tmp_path, stack)
        assert running.holds()
        yield running
        assert running.holds()
        running.process.terminate()
        _, err = running.process.communicate(timeout=PATIENCE_S)
        assert running.process.returncode == 0
        assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["status", "flows", "explain"])
def test_a_client_that_stops_reading_holds_up_nobody(service: Service, verb: str) -> None:
    request = {"verb": verb, "words": ["out", "udp", "10.0.0.5:1", "1.2.3.4:53"]}
    before = service.resident()
    with service.client() as sock:
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.sendall((json.dumps(request) + "\n").encode() * (1 << 18))
        assert service.holds()
        assert control.ask(service.path, "status")["service"] == "vtl-fw"
        assert service.resident() - before < 16 << 20


def test_clients_that_ask_without_end_keep_no_frame_waiting_for_long(service: Service) -> None:
    flood = (
        "import socket, sys, threading\n"
        "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
        "threading.Thread(target=lambda: [sock.recv(1 << 20) for _ in iter(int, 1)], daemon=True).start()\n"
        'while True: sock.sendall(b\'{"verb": "flows"}\\n\' * 1000)\n'
    )
    with ExitStack() as stack:
        before = service.resident()
        for _ in range(4):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", flood, service.path], stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
        for _ in range(200):
            assert service.holds()
        assert control.ask(service.path, "status")["policy"]["rules"] == 2
        assert service.resident() - before < 16 << 20


@contextmanager
def memory(text: bytes, seals: int) -> Iterator[int]:
    """A file in memory with some seals."""
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, text)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("missing", ["SEAL", "WRITE", "GROW", "SHRINK"])
def test_rules_that_the_client_can_still_change_are_refused(service: Service, missing: str) -> None:
    seals = [
        getattr(fcntl, f"F_SEAL_{name}") for name in ("SEAL", "WRITE", "GROW", "SHRINK") if name != missing
    ]
    with memory(b"".join(pack({str(service.rules): b"allow any\n"})), sum(seals)) as fd:
        with pytest.raises(VTLError, match="not a sealed memory file"):
            service.reload_from(SealedFile(fd))
        assert control.ask(service.path, "status")["policy"]["rules"] == 2


@pytest.mark.parametrize("kind", ["pipe", "socket", "file", "directory", "device", "closed end"])
def test_a_descriptor_that_could_keep_the_service_waiting_is_refused(service: Service, kind: str) -> None:
    with ExitStack() as stack:
        left, right = os.pipe() if kind in ("pipe", "closed end") else (-1, -1)
        if kind == "socket":
            left, right = (sock.detach() for sock in socket.socketpair())
        elif kind == "closed end":
            os.close(right)
            right = -1
        elif kind not in ("pipe", "socket"):
            path = {"file": service.rules, "directory": service.tmp, "device": Path("/dev/zero")}[kind]
            left = os.open(path, os.O_RDONLY)
        for fd in left, right:
            if fd >= 0:
                stack.callback(os.close, fd)
        with pytest.raises(VTLError, match="not a sealed memory file"):
            service.reload_from(SealedFile(left))
        assert service.holds()


def test_rules_without_end_are_refused_without_being_read(service: Service) -> None:
    before = service.resident()
    with memory(b"", 0) as fd:
        os.truncate(fd, 1 << 40)  # sparse: it costs the client nothing
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        with pytest.raises(VTLError, match=f"at most {PACKED_MAX >> 20} MiB"):
            service.reload_from(SealedFile(fd))
    with pytest.raises(VTLError, match="at most 16 MiB of rules"):
        service.reload("# x\n" * ((16 << 20) // 4 + 1))
    assert service.resident() - before < 64 << 20


def test_descriptors_that_come_with_no_request_are_closed(service: Service) -> None:
    count = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
    for _ in range(50):
        with service.client() as sock, memory(b"", SEALS) as fd:
            socket.send_fds(sock, [b'{"verb": '], [fd] * 16)
            with suppress(OSError):
                socket.send_fds(sock, [b'"status"'], [fd])
    with service.client() as sock, sock.makefile("rb") as answers, memory(b"", SEALS) as fd:
        for _ in range(50):
            socket.send_fds(sock, [b'{"verb": "status", "upload": 5}\n'], [fd] * 16)
            assert json.loads(answers.readline())["ok"] is True
    until(lambda: len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) <= count, "them to be closed")


def test_rules_go_by_the_socket_once_and_a_second_request_has_none(service: Service) -> None:
    assert service.reload(RULES + "deny\n") == 3
    with pytest.raises(VTLError, match="no rule files came along"):
        control.ask(service.path, "reload", file=str(service.rules))
    with pytest.raises(VTLError, match="damaged rule files"), memory(b"\xff" * 100, SEALS) as fd:
        service.reload_from(SealedFile(fd))


def test_a_file_that_is_wrong_only_there_changes_nothing(service: Service) -> None:
    """As the command finds what is wrong before, only a client of somebody's own sends it."""
    for text in "allow any\nalow any\n", "allow any\n" * 100_001, 'include "/etc/passwd"\ndeny\n', "\0":
        with pytest.raises(VTLError, match="expected"):
            service.reload(text)
        assert service.holds()


REQUESTS: list[dict[str, object]] = [
    {"verb": "flows", "start": 1.5}, {"verb": "flows", "start": 10**30}, {"verb": "flows", "rule": ["1"]},
    {"verb": "flows", "address": "1" * 60_000}, {"verb": "flows", "address": {}},
    {"verb": "kill"}, {"verb": "kill", "words": "out"}, {"verb": "kill", "words": [{}]},
    {"verb": "kill", "words": ["out"] * 5000}, {"verb": "kill", "words": ["out arp"]},
    {"verb": "kill", "words": ["out tcp 1.1.1.1:1 1.1.1.1:99999999999999999999999"]},
    {"verb": "explain", "words": None}, {"verb": "explain", "words": ["\ud800"]},
    {"verb": "explain", "words": ["out tcp [::1]:1 [::1]:1 type \u0661"]},
    {"verb": "upload"}, {"verb": "reload"}, {"verb": "reload", "file": 5}, {"verb": "reload", "file": "x"},
    {"verb": "reload", "file": "x", "upload": 5}, {"verb": "reload", "file": "x", "upload": {"fd": 0}},
]  # fmt: skip


def test_requests_that_mean_nothing_are_answered_and_the_client_may_go_on(service: Service) -> None:
    with service.client() as sock, sock.makefile("rb") as answers:
        for request in REQUESTS:
            sock.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(answers.readline())
            assert answer["ok"] is False, request
            assert len(answer["error"]) < 1000
        sock.sendall(b'{"verb": "status"}\n')
        assert json.loads(answers.readline())["ok"] is True


def test_what_is_kept_of_a_link_and_is_not_right_is_not_used(tmp_path: Path) -> None:
    state = tmp_path / "vtl-fw-x.state"
    state.write_bytes(b"x" * (64 << 20))
    state.chmod(0o600)
    with ExitStack() as stack:
        running = Service(tmp_path, stack)
        assert running.holds()
        running.process.terminate()
        _, err = running.process.communicate(timeout=PATIENCE_S)
        assert f"vtl-fw: {state}: not used: too large\n" in err
    assert "mac 52:54:00:00:00:01\n" in state.read_text()


def test_a_service_that_was_taken_over_is_sent_rules_and_no_other_file(tmp_path: Path) -> None:
    """It names the file that `reload` reads, as root, and sends."""
    secret = tmp_path / "secret"
    secret.write_text("root:$y$j9T$secret:20000:0:99999:7:::\n")
    path = tmp_path / "vtl-fw-x.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE_S)
        client = subprocess.Popen(
            [BIN / "vtl-fw", "reload", "--link", path], stderr=subprocess.PIPE, text=True
        )
        heard = []
        for _ in range(2):  # more is not said, but a second question would be heard
            try:
                taken, _ = listener.accept()
            except TimeoutError:
                break
            with taken:
                heard.append(json.loads(taken.recv(1 << 16))["verb"])
                answer = {"ok": True, "result": {"policy": {"named_file": str(secret)}}}
                taken.sendall(json.dumps(answer).encode() + b"\n")
            if client.poll() is None:
                listener.settimeout(2)
        _, err = client.communicate(timeout=PATIENCE_S)
    assert heard == ["status"]
    assert client.returncode != 0
    assert str(secret) in err


def test_what_a_service_knows_goes_to_another_by_a_file_and_what_is_no_export_is_one_line(
    service: Service, tmp_path: Path
) -> None:
    def ran(*words: str | Path) -> tuple[int, str, str]:
        command = [BIN / "vtl-fw", *words, "--link", service.path]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        return done.returncode, done.stdout, done.stderr

    file, wrong = tmp_path / "vm.state", tmp_path / "wrong"
    assert ran("export", file) == (0, "", "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("vtl-fw 2 moved\nmac ")
    assert ran("export") == (0, file.read_text(), "")
    assert ran("import", file) == (0, "", "0 connections; the VM is known\n")
    answer = json.loads(ran("import", file, "--json")[1])
    assert (answer["connections"], answer["identity"]) == (0, True)
    wrong.write_text("vtl-fw 2 moved\nflow x\n")
    assert ran("import", wrong) == (
        1, "", "vtl-fw: import: 'flow x': not what vtl-fw writes; export the state again\n"
    )  # fmt: skip
    assert ran("export", tmp_path / "no" / "x")[0] == 1
    assert ran("import", tmp_path / "none")[0] == 2
