"""What a service may still do once it runs, where root started it: as the kernel tells it, and as tried.

The tables are what the man pages say under PRIVILEGES.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.netns import Host, Lab
from lab.user import NOBODY, as_root_alone, as_user
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import KEPT
from tests.running import BIN, bridge
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

NET_ADMIN, NET_RAW, BPF, DAC_OVERRIDE = (1 << n for n in (12, 13, 39, 1))
BITS = {"CAP_NET_ADMIN": NET_ADMIN, "CAP_NET_RAW": NET_RAW, "CAP_BPF": BPF}
STRANGER = 60001
"""A user of the host who is neither root nor who the services become."""


@pytest.fixture
def host(lab: Lab) -> Host:
    """A host with a guest's interface, vmnet1, and an uplink, eth0, and whoever is there."""
    middle, guest, server = lab.host("host"), lab.host("guest"), lab.host("server")
    lab.veth(guest, "eth0", middle, "vmnet1")
    lab.veth(server, "eth0", middle, "eth0")
    lab.veth(server, "eth1", middle, "lan")
    guest.addr("eth0", "10.0.2.15/24")
    return middle


def proxy(lab: Lab) -> list[str | Path]:
    """Options of a vtl-tor whose proxy only root reaches, and which nobody serves."""
    directory = lab.dir / "proxy"
    directory.mkdir(mode=0o700)
    return ["--socks", f"unix:{directory}/socks", "--no-check"]


def services(lab: Lab) -> dict[str, tuple[list[str | Path], int]]:
    """Each service: options, and the capabilities that it keeps."""
    rules = lab.dir / "rules"
    rules.write_text("allow any\n")
    fw = ["--iface", "vmnet1", "--uplink", "eth0", "--rules", rules]
    two = ["--iface", "vmnet1", "--iface", "eth0"]
    subnet = ["--iface", "vmnet1", "--default", "eth0", "--direct", "lan", "--allow", "10.2.0.0/16"]
    key = lab.dir / "udt.key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    own = "127.0.0.1:7700"  # its own peer, so that it has a session
    udt = ["--key-file", key, "--listen", own, "--peer", own, "--transport", "tcp"]
    return {
        "vortex-client": (["--iface", "eth0", "--backend", "lan"], NET_ADMIN),
        "vtl-ack": (["--iface", "vmnet1", "--uplink", "eth0"], NET_ADMIN),
        "vtl-bridge": (two, NET_ADMIN),
        "vtl-bridge without a guard": ([*two, "--guard", "off"], NET_ADMIN),
        "vtl-freeze": (["--iface", "vmnet1"], NET_RAW | BPF),
        "vtl-fw": ([*fw, "--guard", "process"], NET_ADMIN),
        "vtl-split": (["--iface", "vmnet1"], NET_ADMIN),
        "vtl-split without an interface": (["--iface", f"channel:{lab.dir}/vm,server"], 0),
        "vtl-subnet": (list(subnet), NET_ADMIN),
        "vtl-tor": (["--iface", "vmnet1", "--dhcp", "--guard", "process", *proxy(lab)], NET_ADMIN),
        "vtl-udt": (["--iface", "vmnet1", *udt], NET_ADMIN),
    }


SERVICES = (
    "vortex-client",
    "vtl-ack", "vtl-bridge", "vtl-bridge without a guard", "vtl-freeze", "vtl-fw", "vtl-split",
    "vtl-split without an interface", "vtl-subnet", "vtl-tor", "vtl-udt",
)  # fmt: skip


def told(pid: int) -> dict[str, str]:
    """What the kernel tells of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(rest.split()) for name, _, rest in (line.partition(":") for line in lines)}


def has_ended(pid: int) -> bool:
    """Whether a process has ended, also if nobody has reaped it."""
    try:
        return told(pid)["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid: int, name: str = "") -> list[int]:
    """Children by name; without one, all but the writer of standard error, which pytest has in a file."""
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [one for one in found if (told(one)["Name"] == name if name else told(one)["Name"] != "vtl-log")]


def check(pid: int, uid: int, capabilities: int) -> None:
    fields = told(pid)
    group = uid
    held = f"{capabilities:016x}"
    assert {name: fields[name] for name in ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp")} == {
        "Uid": " ".join([str(uid)] * 4),
        "Gid": " ".join([str(group)] * 4),
        "Groups": "" if uid else fields["Groups"],
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }
    assert {name: fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "CapInh": f"{0:016x}", "CapPrm": held, "CapEff": held, "CapBnd": held, "CapAmb": f"{0:016x}",
    }  # fmt: skip
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert next(line.split()[4:6] for line in limits if line.startswith("Max core")) == ["0", "0"]
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0, "it is not dumpable"


def held_files(pid: int) -> set[str]:
    """The files that a process has open, without sockets."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed
            found.add(str(fd.readlink()))
    return {each for each in found if not each.startswith("socket:")}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_keeps_no_more_than_its_page_says(lab: Lab, host: Host, service: str) -> None:
    options, capabilities = services(lab)[service]
    assert capabilities & ~sum(BITS[name] for name in KEPT[service.split()[0]]) == 0
    with bridge(lab, host, *options, service=service.split()[0]) as running:
        check(running.process.pid, NOBODY, capabilities)
        (broker,) = children(running.process.pid, "vtl-broker")
        tunes = NET_ADMIN if service.startswith("vtl-split") else 0
        check(broker, 0, DAC_OVERRIDE | tunes)
        errors = str(Path(f"/proc/{running.process.pid}/fd/2").readlink())
        until(lambda: held_files(broker) <= {errors}, "a broker that has no file open, but while it writes")
        assert running.status()["pid"]


def test_the_processes_that_write_records_have_few_rights(lab: Lab, host: Host) -> None:
    records = ("--pcap", lab.dir / "seen.pcapng", "--log", lab.dir / "log")
    with bridge(lab, host, "--iface", "vmnet1", "--iface", "eth0", *records) as running:
        for name, file in ("vtl-capture", "seen.pcapng"), ("vtl-log", "log"):
            (writer,) = children(running.process.pid, name)
            check(writer, 0, DAC_OVERRIDE)
            held = {str(fd.readlink()) for fd in Path(f"/proc/{writer}/fd").iterdir()}
            assert str(lab.dir / file) in held
            rest = held - {"/dev/null", str(lab.dir / file)}
            assert all(one.startswith(("socket:", "anon_inode:[eventfd]")) for one in rest)


def test_each_worker_keeps_what_it_needs_to_open_its_interfaces(lab: Lab, host: Host) -> None:
    options = ("--iface", "vmnet1", "--iface", "eth0", "--workers", "2")
    with bridge(lab, host, *options) as running:
        check(running.process.pid, NOBODY, NET_ADMIN)
        found = {told(pid)["Name"]: pid for pid in children(running.process.pid)}
        check(found.pop("vtl-broker"), 0, DAC_OVERRIDE)
        workers = [p for p in children(running.process.pid) if told(p)["Name"] != "vtl-broker"]
        assert len(workers) == 2
        for worker in workers:
            check(worker, NOBODY, NET_RAW)


def test_a_service_may_have_a_user_of_its_own_or_stay_root(lab: Lab, host: Host) -> None:
    for user, uid in ("daemon", 1), ("root", 0):
        with bridge(lab, host, "--iface", "vmnet1", "--iface", "eth0", "--user", user) as running:
            check(running.process.pid, uid, NET_ADMIN)
            assert len(children(running.process.pid)) == (1 if uid else 0)


def test_an_ordinary_users_service_gains_nothing_and_needs_no_broker(lab: Lab, host: Host) -> None:
    links = (f"qemu:unix:{lab.dir}/run-{STRANGER}/a,server", f"channel:{lab.dir}/run-{STRANGER}/b,server")
    with bridge(lab, host, "--iface", links[0], "--iface", links[1], user=STRANGER) as running:
        fields = told(running.process.pid)
        assert (fields["Uid"].split()[0], fields["CapPrm"]) == (str(STRANGER), f"{0:016x}")
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
        assert not children(running.process.pid)


# --- code of somebody else's in a service

TAKEN_OVER = """
import ctypes, os, signal, socket, sys, time
from pathlib import Path
from vtl_tools.common.runtime import control
from vtl_tools.common.host import broker, privilege
from vtl_tools.common.device.spec import open_device
from vtl_tools.common.host.guard import MARK
from vtl_tools.common.host.interfaces import Interfaces, Side
from vtl_tools.common.runtime.runner import Options, Runner
from vtl_tools.common.stage import Stage

directory, victim = Path(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def forked(attack):
    pid = os.fork()
    if not pid:
        try:
            attack()
            os._exit(0)
        except OSError as e:
            os._exit(e.errno)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(code, "")

def namespaced():
    call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)  # clone: a user namespace, where it would be root

ATTACKS = {
    "change a password": lambda: open("/etc/shadow", "r+b"),
    "read a password": lambda: open("/etc/shadow", "rb"),
    "make a file anywhere": lambda: open("/tmp/vtl-taken-over", "wb"),
    "make a file beside its own": lambda: (directory / "new").write_text(""),
    "overwrite a file that all may write": lambda: open(directory / "open-to-all", "wb"),
    "remove its control socket": lambda: (directory / "x.sock").unlink(),
    "make a link": lambda: os.symlink("/", directory / "all" / "link"),
    "make a file where all may": lambda: (directory / "all" / "new").write_text(""),
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "run a program in a child": lambda: forked(lambda: os.execv("/bin/true", ["true"])),
    "end another process of its user": lambda: os.kill(victim, signal.SIGKILL),
    "end another from a child": lambda: forked(lambda: os.kill(victim, signal.SIGKILL)),
    "end another by a pidfd": lambda: signal.pidfd_send_signal(os.pidfd_open(victim), signal.SIGKILL),
    "end another by its thread": lambda: call(234, victim, victim, 9),
    "change another's limits": lambda: call(302, victim, 7, 0, 0),
    "type at root's terminal": lambda: call(16, 0, 0x5412, b"x"),
    "paste at root's terminal": lambda: call(16, 0, 0x541C, b"x"),
    "end its broker": lambda: os.kill(broker._pid, signal.SIGKILL),
    "look into another": lambda: call(101, 16, victim, 0, 0),
    "read another's memory": lambda: open(f"/proc/{victim}/mem", "rb"),
    "become root": lambda: os.setresuid(0, 0, 0),
    "become root's group": lambda: os.setgroups([0]),
    "be root in a namespace": lambda: call(272, 0x10000000),
    "be root in a child's namespace": namespaced,
    "change its root": lambda: os.chroot("/"),
    "mount": lambda: call(165, b"none", b"/mnt", b"tmpfs", 0, 0),
    "load a program into the kernel": lambda: call(321, 5, 0, 0),
    "have an asynchronous ring": lambda: call(425, 1, 0),
    "listen to the kernel's log": lambda: call(103, 3, 0, 0),
    "use the other system calls of the machine": lambda: call(0x40000000 | 59, 0, 0, 0),
}

def attack(_):
    ended = {}
    for name, step in ATTACKS.items():
        try:
            step()
            ended[name] = "it did"
        except OSError as e:
            ended[name] = e.errno
    return ended

links = [open_device(name, mark=MARK) for name in ("vmnet1", "eth0")]
class Idle(Stage):
    def on_batch(self, port, batch, now):
        pass
options = Options(service="taken-over", json=True, control=directory / "x.sock")
with Interfaces("taken-over", "process", [Side("vmnet1")]) as interfaces:
    sys.exit(Runner(Idle(), links, options, interfaces, {"attack": attack}).run())
"""
"""A service whose verb does what somebody would who runs code in it."""


def test_code_in_a_service_writes_no_file_starts_no_program_and_ends_no_process(lab: Lab, host: Host) -> None:
    directory = lab.dir / "taken"
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "all").mkdir()
    (directory / "all").chmod(0o777)
    (directory / "open-to-all").write_text("kept")
    (directory / "open-to-all").chmod(0o666)
    victim = host.popen(
        "sh", "-c", "echo $$; exec sleep 1000", user=NOBODY, stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    number = victim.stdout.readline().strip()
    command = [sys.executable, "-c", TAKEN_OVER, str(directory), number]
    process = host.popen(*command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "ready"
    ended = control.ask(directory / "x.sock", "attack")
    assert {name: code for name, code in ended.items() if code not in (1, 13)} == {}
    assert len(ended) == 30
    assert victim.poll() is None
    assert (directory / "open-to-all").read_text() == "kept"
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert not (directory / "x.sock").exists(), "the broker removes it"


# --- what must go on all the same


def imports(errors: Path) -> list[str]:
    """The modules that a process read so far, as Python tells under PYTHONPROFILEIMPORTTIME."""
    return [line for line in errors.read_text().splitlines() if line.startswith("import time:")]


@contextmanager
def from_roots_home(lab: Lab, host: Host, tool: str, *options: str | Path) -> Iterator[Callable[..., Any]]:
    """Run a service of which only root may read the modules; yields what asks it.

    At the end: it read no module after it was ready, and ended well.
    """
    errors, control_socket = lab.dir / "errors", lab.dir / "alone.sock"
    command = [*as_root_alone(lab, host, tool), *options, "--json", "--control", control_socket]
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    with errors.open("w") as err:
        process = host.popen(*command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert '"ready"' in first, errors.read_text()[-2000:]
    before = imports(errors)
    yield partial(control.ask, control_socket)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert "Traceback" not in errors.read_text()
    assert "Error" not in "\n".join(set(errors.read_text().splitlines()) - set(imports(errors)))
    assert [line.rpartition("|")[2].strip() for line in imports(errors)[len(before) :]] == []


def test_a_bridge_whose_modules_only_root_reads_goes_on_recording(lab: Lab, host: Host) -> None:
    capture = lab.dir / "seen.pcapng"
    options = ("--iface", "vmnet1", "--iface", "eth0", "--pcap", capture)
    with from_roots_home(lab, host, "vtl-bridge", *options) as ask:
        lab.hosts[1].run("ping", "-c1", "-W1", "10.0.2.99", check=False)
        until(lambda: ask("status")["links"][0]["rx_frames"], "a frame")
        host.run("ip", "link", "set", "vmnet1", "down")
        until(lambda: not ask("status")["links"][0]["up"], "the link to go")
        host.run("ip", "link", "set", "vmnet1", "up")
        until(lambda: ask("status")["links"][0]["up"], "the link")
    assert capture.stat().st_size > 100
    assert stat.S_IMODE(capture.stat().st_mode) == 0o600


def test_a_transformer_whose_modules_only_root_reads_reaches_its_peer(lab: Lab, host: Host) -> None:
    options, _ = services(lab)["vtl-udt"]
    with from_roots_home(lab, host, "vtl-udt", *options) as ask:
        until(lambda: ask("status")["peers"]["127.0.0.1:7700"]["up"], "the session")


def test_workers_whose_modules_only_root_reads_go_on(lab: Lab, host: Host) -> None:
    options = ("--iface", "vmnet1", "--iface", "eth0", "--workers", "2")
    with from_roots_home(lab, host, "vtl-bridge", *options) as ask:
        assert ask("status")["workers"] == 2


def test_a_firewall_whose_modules_only_root_reads_reloads_and_explains(lab: Lab, host: Host) -> None:
    options, _ = services(lab)["vtl-fw"]
    packet = ["out", "tcp", "10.0.2.15:40000", "1.2.3.4:443"]
    with from_roots_home(lab, host, "vtl-fw", *options) as ask:
        lab.hosts[1].run("ping", "-c1", "-W1", "10.0.2.99", check=False)
        (lab.dir / "rules").write_text("deny any\n")
        host.run(BIN / "vtl-fw", "reload", "--link", lab.dir / "alone.sock", "--rules", lab.dir / "rules")
        assert ask("explain", words=packet)["verdict"] == "deny"
        assert ask("flows", start=0, rule=None, address=None)["flows"] == []
        state = lab.dir / "alone.state"
        until(state.exists, "what is remembered")
        assert (state.stat().st_uid, stat.S_IMODE(state.stat().st_mode)) == (0, 0o600)


def test_a_tor_whose_modules_only_root_reads_answers_names_of_every_type(lab: Lab, host: Host) -> None:
    options, _ = services(lab)["vtl-tor"]
    guest = lab.hosts[1]
    with from_roots_home(lab, host, "vtl-tor", *options, "--dns", "resolve") as ask:
        with guest.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(("10.0.2.2", 53))
            question = b"\1a\7example\0"
            for kind in range(1, 300):
                record = b"\0" + kind.to_bytes(2, "big") + b"\0\4" + bytes(6)
                sock.send(
                    kind.to_bytes(2, "big")
                    + bytes.fromhex("0100 0001 0000 0000 0001")
                    + (question + kind.to_bytes(2, "big") + b"\0\1" + record)
                )
                assert sock.recv(512)[:2] == kind.to_bytes(2, "big")
        with guest.enter(), pytest.raises(OSError):
            socket.create_connection(("1.2.3.4", 80), 20)
        assert ask("flows") == {"flows": []}
        ask("newnym")


def test_a_freezer_whose_modules_only_root_reads_writes_and_takes_up_its_state(lab: Lab, host: Host) -> None:
    kept = lab.dir / "state"
    kept.mkdir(mode=0o700)
    options = ("--iface", "vmnet1", "--state", kept / "x.state", "--vm", "web")
    out = lab.dir / "exported"
    with from_roots_home(lab, host, "vtl-freeze", *options) as ask:
        where = ("--link", lab.dir / "alone.sock")
        assert ask("start")["began"]
        host.run(BIN / "vtl-freeze", "export", out, *where)
        assert json.loads(out.read_bytes())["frozen"]
        assert ask("stop")["ended"]
        host.run(BIN / "vtl-freeze", "import", out, *where)
        assert ask("status")["freeze"]["frozen"]
        assert ask("report")["connections"] == []
        assert [path.name for path in kept.iterdir()] == ["x.state"]
    assert (kept / "x.state").stat().st_uid == 0
    assert json.loads((kept / "x.state").read_bytes())["vm"] == "web"


def test_a_subnet_whose_modules_only_root_reads_goes_on(lab: Lab, host: Host) -> None:
    options, _ = services(lab)["vtl-subnet"]
    with from_roots_home(lab, host, "vtl-subnet", *options) as ask:
        lab.hosts[1].run("ping", "-c1", "-W1", "10.0.2.99", check=False)
        until(lambda: ask("status")["links"][0]["rx_frames"], "a frame")


def serve(path: Path, owner: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Listen on a unix socket that is another user's, as QEMU's is."""
    sock = socket.socket(socket.AF_UNIX, kind)
    path.unlink(missing_ok=True)
    sock.bind(str(path))
    os.chown(path, owner, owner)
    path.chmod(0o600)
    if kind != socket.SOCK_DGRAM:
        sock.listen()
    sock.settimeout(PATIENCE_S)
    return sock


def test_another_users_sockets_are_reached_again_without_the_right_to(lab: Lab, host: Host) -> None:
    """QEMU's stream, its monitor, a channel and datagrams, all of a user that the service is not."""
    theirs = lab.dir / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, STRANGER, STRANGER)
    stream, packets = (serve(theirs / name, STRANGER, kind) for name, kind in (
        ("net", socket.SOCK_STREAM), ("channel", socket.SOCK_SEQPACKET)))  # fmt: skip
    datagrams = serve(theirs / "dgram", STRANGER, socket.SOCK_DGRAM)
    links = (
        f"qemu:unix:{theirs}/net",
        f"channel:{theirs}/channel",
        f"dgram:unix:{theirs}/dgram,local={lab.dir}/us",
    )
    options = [word for link in links for word in ("--iface", link)]
    with bridge(lab, host, *options) as running:
        check(running.process.pid, NOBODY, 0)
        for _ in range(2):
            accepted = stream.accept()[0], packets.accept()[0]
            until(lambda: all(link["up"] for link in running.status()["links"]), "all links")
            for sock in *accepted, stream, packets, datagrams:
                sock.close()
            until(lambda: not any(link["up"] for link in running.status()["links"]), "no link")
            stream, packets = (serve(theirs / name, STRANGER, kind) for name, kind in (
                ("net", socket.SOCK_STREAM), ("channel", socket.SOCK_SEQPACKET)))  # fmt: skip
            datagrams = serve(theirs / "dgram", STRANGER, socket.SOCK_DGRAM)
        for sock in stream, packets, datagrams:
            sock.close()
    assert not (lab.dir / "us").exists()


def test_a_monitor_of_another_users_qemu_is_reached_again(lab: Lab, host: Host) -> None:
    theirs = lab.dir / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, STRANGER, STRANGER)
    monitor = serve(theirs / "qmp", STRANGER)
    with bridge(lab, host, "--iface", "vmnet1", "--qmp", theirs / "qmp", service="vtl-freeze"):
        for _ in range(2):
            client, _ = monitor.accept()
            client.close()
    monitor.close()


def test_what_a_killed_service_leaves_is_removed(lab: Lab, host: Host) -> None:
    command = [
        BIN / "vtl-bridge",
        "--iface",
        "vmnet1",
        "--iface",
        f"qemu:unix:{lab.dir}/net,server",
        "--json",
    ]
    process = host.popen(*command, "--control", lab.dir / "x.sock", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"ready" in process.stdout.readline()
    (broker,) = children(process.pid)
    assert (lab.dir / "net").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not (lab.dir / "x.sock").exists(), "the control socket to go")
    until(lambda: not (lab.dir / "net").exists(), "the link's socket to go")
    until(lambda: has_ended(broker), "the broker to end")


def test_a_socket_that_nobody_serves_does_not_count_as_a_service_that_runs(lab: Lab, host: Host) -> None:
    run = lab.dir / "run"
    run.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(run / "vtl-bridge-gone.sock"))
    environment = {**os.environ, "VTL_RUN": str(run)}
    done = host.run(BIN / "vtl-bridge", "status", env=environment, check=False)
    assert (done.returncode, "\tdied\t" in done.stdout) == (7, True)
    done = host.run(BIN / "vtl-bridge", "status", "--link", "eth9", env=environment, check=False)
    assert (done.returncode, "no service answers" in done.stderr) == (6, True)


# --- who may ask, and who is asked


def test_no_other_user_is_answered_whatever_the_sockets_mode(lab: Lab, host: Host) -> None:
    asked = """import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
try:
    sock.sendall(b'{"verb": "status"}\\n')
    print(len(sock.recv(100)))
except OSError:
    print(0)
"""
    with bridge(lab, host, "--iface", "vmnet1", "--iface", "eth0") as running:
        running.socket.parent.chmod(0o755)
        running.socket.chmod(0o666)
        for user in NOBODY, STRANGER:
            done = host.run("/usr/bin/python3", "-c", asked, running.socket, user=user)
            assert done.stdout == "0\n"
        assert int(host.run("/usr/bin/python3", "-c", asked, running.socket).stdout) > 0


IMPOSTOR = """
import os, socket, sys
directory, name = os.path.split(sys.argv[1])
os.umask(0)
os.makedirs(directory, exist_ok=True)
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print("ready", flush=True)
while True:
    client, _ = sock.accept()
    with client:
        line = client.recv(1 << 16)
        print(len(line), flush=True)
        try:
            client.sendall(b'{"ok": true, "result": {}}\\n')
        except OSError:
            pass
"""


def test_another_users_socket_where_ours_would_be_is_asked_nothing(lab: Lab, host: Host) -> None:
    """Without XDG_RUNTIME_DIR sockets are in /tmp, where anybody makes the directory first."""
    path = f"/tmp/vtl-{NOBODY}/vtl-bridge-vmnet1.sock"
    victims = {"directory": path, "path": f"{lab.dir}/all/vtl-bridge-x.sock"}
    (lab.dir / "all").mkdir()
    (lab.dir / "all").chmod(0o1777)
    host.run("mount", "-t", "tmpfs", "none", "/tmp")
    host.call(partial(Path("/tmp").chmod, 0o1777))
    for where in victims.values():
        impostor = host.popen(
            "/usr/bin/python3", "-c", IMPOSTOR, where, user=STRANGER, stdout=subprocess.PIPE
        )
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == b"ready\n"
        tool = ["env", "-u", "XDG_RUNTIME_DIR", *as_user(lab, host, "vtl-bridge")]
        for user, words in (NOBODY, where), (NOBODY, "vmnet1"), (0, where):
            if words == where or where == path:
                done = host.run(*tool, "status", "--link", words, user=user, check=False)
                assert f"user {STRANGER} answers there" in done.stderr
        impostor.kill()
        said = impostor.stdout.read().split()
        assert set(said) <= {b"0"}, "it is told nothing"


def test_systemd_is_told_of_the_end_as_well_by_a_socket_that_only_root_reaches(lab: Lab, host: Host) -> None:
    run = lab.dir / "run"
    run.mkdir(mode=0o700)
    command = [BIN / "vtl-bridge", "--iface", "vmnet1", "--iface", "eth0", "--control", lab.dir / "x.sock"]
    for name in str(run / "notify"), "@vtl-test-privileges":
        with host.enter(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(name.replace("@", "\0"))
            systemd.settimeout(PATIENCE_S)
            process = host.popen(*command, env={**os.environ, "NOTIFY_SOCKET": name})
            assert systemd.recv(100) == b"READY=1"
            process.terminate()
            assert systemd.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE_S) == 0
