"""The process that starts services: what one can ask of it that has taken vtl-vnet over."""

import json
import os
import select
import signal
import sys
import tempfile

import pytest

from lab.wait import PATIENCE_S, until
from vtl_tools.common.errors import VTLError
from vtl_tools.services.vnet.keeper import ServiceKeeper
from vtl_tools.services.vnet.service_spec import parse_service

NOTES = "import sys; open(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + chr(10)); sys.stdin.close()"


@pytest.fixture
def noted(tmp_path):
    return tmp_path / "noted"


@pytest.fixture
def keeper(noted):
    """A keeper of programs that note their command lines and end."""
    keeper = ServiceKeeper(lambda tool: [sys.executable, "-c", NOTES, str(noted), tool], None)
    yield keeper
    keeper.close()


def ended(keeper):
    """Wait until a service has ended, or the keeper; return whether it was the service."""
    seen = []
    keeper.on_change = lambda link, pid, status: seen.append(pid)
    while 0 not in seen:
        poll = select.poll()
        poll.register(keeper, select.POLLIN)
        assert poll.poll(PATIENCE_S * 1000)
        try:
            assert keeper.poll(0.0)
        except VTLError:
            return False
    return True


def test_it_makes_the_command_line_of_a_service(keeper, noted):
    keeper.start("slow", parse_service("service:wan?delay=10ms"))
    assert ended(keeper)
    vm, net, control = keeper.places("slow")
    sides = f"--iface channel:{vm},server --uplink channel:{net},server"
    assert noted.read_text().splitlines()[0] == f"vtl-wan {sides} --delay=10ms --control {control}"


def test_a_service_reads_its_secret_and_nobody_else_can(noted):
    reads = f"open({str(noted)!r}, 'a').write(open('/dev/stdin').read() + sys.argv[-1] + chr(10))"
    keeper = ServiceKeeper(lambda tool: [sys.executable, "-c", f"import sys; {reads}"], None)
    try:
        spec = parse_service("service:split?uplink&on-demand")
        assert spec.sides == 2
        keeper.start("x", spec, b"secret")
        until(lambda: noted.exists() and noted.read_text().count("\n") >= 2, "its second start")
        assert set(noted.read_text().splitlines()) == {f"{b'secret'.hex()}--key-file=/dev/stdin"}
        assert not [path for path in keeper.directory.iterdir() if path.is_file()]
    finally:
        keeper.close()


def test_all_services_end_and_vtl_vnet_with_the_process_that_runs_them(tmp_path):
    pids = tmp_path / "pids"
    waits = f"import os, time; open({str(pids)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(1000)"
    keeper = ServiceKeeper(lambda tool: [sys.executable, "-c", waits], None)
    keeper.start("x", parse_service("service:wan"))
    until(lambda: pids.exists() and pids.read_text().endswith("."), "its start")
    pidfd = os.pidfd_open(int(pids.read_text()[:-1]))
    os.kill(keeper._pid, signal.SIGKILL)
    assert not ended(keeper)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(PATIENCE_S * 1000)
    keeper.close()


def test_a_start_removes_the_directories_of_keepers_that_were_killed_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = lambda tool: [sys.executable, "-c", ""]  # noqa: E731
    killed, alive = ServiceKeeper(program, None), ServiceKeeper(program, None)
    os.kill(killed._pid, signal.SIGKILL)
    killed.close()
    (killed.directory / "x.vm").touch()
    foreign, notes, open_to_all, link = (tmp_path / f"vtl-vnet-{name}" for name in "abcd")
    for path in foreign, notes, open_to_all, tmp_path / "elsewhere":
        path.mkdir()
        (path / "x.vm").touch()
        path.chmod(0o755 if path is open_to_all else 0o711)
    os.chown(foreign, 65534, 65534)
    (notes / "notes.txt").touch()
    link.symlink_to(tmp_path / "elsewhere")
    keeper = ServiceKeeper(program, None)
    try:
        assert not killed.directory.exists()
        assert alive.directory.exists()
        assert all((path / "x.vm").exists() for path in (foreign, notes, open_to_all, link))
    finally:
        for one in keeper, alive:
            one.close()
    assert not alive.directory.exists()


def test_somebody_who_watches_tmp_does_not_hinder_a_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make = tempfile.mkdtemp

    def watched(**how):
        made = make(**how)
        (tmp_path / f"vtl-vnet-{made.rpartition('-')[2]}").touch()  # a name that it may be going to have
        return made

    monkeypatch.setattr(tempfile, "mkdtemp", watched)
    keeper = ServiceKeeper(lambda tool: [sys.executable, "-c", ""], None)
    keeper.close()


def test_a_service_that_cannot_be_started_is_tried_again_and_others_go_on(noted, tmp_path):
    program = tmp_path / "program"
    keeper = ServiceKeeper(lambda tool: [str(program), str(noted), tool], None)
    try:
        keeper.start("x", parse_service("service:wan"))
        assert ended(keeper)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{NOTES}" "$@"\n')
        program.chmod(0o700)
        until(noted.exists, "its start")
    finally:
        keeper.close()


def test_a_service_that_does_not_answer_says_nothing(keeper):
    answers = []
    keeper.on_answer = lambda link, answer: answers.append((link, answer))
    keeper.ask("x", take=True)
    until(lambda: keeper.poll(0.0) or answers, "the answer")
    assert answers == [("x", {})]


def test_an_option_without_a_value_is_a_flag():
    assert parse_service("service:tor?no-check&socks=127.0.0.1:9050").words == (
        "--no-check", "--socks=127.0.0.1:9050",
    )  # fmt: skip
    assert parse_service("service:fw").words == ()


@pytest.mark.parametrize(
    "asked",
    [
        {"start": "x", "command": ["/bin/sh", "-c", "echo"]},
        {"start": "x", "service": "service:doctor"},
        {"start": "x", "service": "service:wan?log=/etc/passwd"},
        {"start": "x", "service": "service:tor?start-tor"},
        {"start": "x", "service": "service:freeze?qmp=/run/vm.qmp"},
        {"start": "x", "service": "service:freeze?state=/etc/passwd"},
        {"start": "../x", "service": "service:wan"},
        {"start": 1, "service": "service:wan"},
        {"start": "x", "service": "service:wan", "secret": "zz"},
        {},
    ],
)
def test_it_ends_rather_than_start_anything_else(keeper, noted, asked):
    keeper._channel.send(json.dumps(asked).encode())
    assert not ended(keeper)
    assert not noted.exists()
    keeper.close()
    assert not keeper.directory.exists()
