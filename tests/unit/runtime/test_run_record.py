"""The record of a service: alive as long as its process, gone after a good end, believed if it is ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtl_tools.common.runtime import discovery, run_record
from vtl_tools.common.runtime.run_record import RunRecordFile, read, record_of

HOLD = """
import sys
from pathlib import Path
from vtl_tools.common.runtime.run_record import RunRecordFile
record = RunRecordFile(Path(sys.argv[1]), "vtl-x", ["vmnet1", "eth0"], {"vmnet1": "kept"})
record.begin()
print("begun", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("VTL_RUN", str(tmp_path))
    return tmp_path / "vtl-x-vmnet1.run"


def held(path):
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=pipe, stdout=pipe)
    assert process.stdout.readline() == b"begun\n"
    return process


def test_a_record_lives_as_long_as_its_process(path):
    with held(path) as process:
        found = read(path)
        assert found.is_locked
        assert (found.service, found.links, found.cut_off()) == ("vtl-x", ["vmnet1", "eth0"], ["vmnet1"])
        assert path.stat().st_mode & 0o777 == 0o600
        process.kill()
    assert not read(path).is_locked
    assert "vmnet1 stays cut off" in read(path).obituary()


def test_a_sign_of_life_changes_nothing_but_the_time(path):
    record = RunRecordFile(path, "vtl-x", [], {})
    record.begin()
    before = path.read_bytes()
    os.utime(path, (1000, 1000))
    assert read(path).alive == 1000
    record.beat()
    assert read(path).alive > 1000
    (fd,) = (fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(path))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(int(fd.name), b"rm -rf /")
    assert path.read_bytes() == before
    record.end()
    assert not path.exists()
    record.end()
    record.beat()


def test_a_sign_of_life_is_not_that_of_a_file_that_another_user_links_to(path):
    record = RunRecordFile(path, "vtl-x", [], {})
    record.begin()
    victim = path.with_name("victim")
    victim.touch()
    os.utime(victim, (1000, 1000))
    path.unlink()
    path.symlink_to(victim)
    record.beat()
    assert victim.stat().st_mtime == 1000


def test_a_record_that_another_user_could_have_written_is_not_believed(path):
    record = RunRecordFile(path, "vtl-x", ["vmnet1"], {})
    record.begin()
    assert read(path) is not None
    path.chmod(0o622)
    assert read(path) is None
    path.chmod(0o600)
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)
    assert read(path) is None


@pytest.mark.parametrize("text", ["", "\n", "{", "[]", '{"service": 1}', "[" * 100_000, "\xff"])
def test_a_file_that_is_no_record_is_ignored(path, text):
    path.write_text(text)
    assert read(path) is None


def test_a_record_replaces_that_of_a_dead_process_and_a_failure_to_write_it_ends_nothing(path, caplog):
    path.write_text("x" * 10_000)
    record = RunRecordFile(path, "vtl-x", [], {})
    record.begin()
    assert json.loads(path.read_text())["service"] == "vtl-x"
    record.end()
    lost = RunRecordFile(path.parent / "nowhere" / "x.run", "vtl-x", [], {})
    lost.begin()
    lost.beat()
    lost.end()
    assert "'status' will not tell if the service is killed" in caplog.text


def test_the_remedy_is_what_started_the_service(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vtl-x", "--rules", "web rules"])
    monkeypatch.chdir(tmp_path)
    record = RunRecordFile(path, "vtl-x", [], {})
    record.begin()
    assert read(path).remedies() == ["vtl-x --rules 'web rules'"]
    monkeypatch.chdir("/")
    assert read(path).remedies() == [f"cd {tmp_path} && vtl-x --rules 'web rules'"]
    record.end()


def test_a_unit_of_systemd_is_restarted_and_not_the_shell_or_the_sshd_of_a_person():
    assert run_record.unit_of("0::/system.slice/system-vtl\\x2dfw.slice/vtl-fw@vmnet1.service\n") == (
        "vtl-fw@vmnet1.service"
    )
    for text in "0::/user.slice/user-0.slice/session-3.scope\n", "0::/system.slice/ssh.service\n", "":
        assert run_record.unit_of(text) == ""


def test_the_record_is_beside_the_control_socket(tmp_path):
    assert record_of(tmp_path / "a.sock") == tmp_path / "a.run"
    assert record_of(tmp_path / "a.run") == tmp_path / "a.run.run"


def test_a_service_that_is_there_and_does_not_answer_is_not_called_dead(path):
    with held(path) as process:
        (found,) = discovery.survey("vtl-x", None)
        assert found.state == "not answering"
        assert "starts, ends or is stopped" in str(found.error())
        process.kill()
    (found,) = discovery.survey("vtl-x", None)
    assert found.state == "died"
    assert (found.error().exit_code, run_record.read(path).pid) == (7, process.pid)
