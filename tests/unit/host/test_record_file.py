"""Files of records: they rotate within limits, take only their own away, and are created again when asked."""

import os
import subprocess
import sys

import pytest

from lab.wait import until
from vtl_tools.common.host.octet_queue import OctetQueue
from vtl_tools.common.host.record_file import CaptureFiles, LogFile
from vtl_tools.common.host.scribe import Scribe


def lines(queue, octets):
    """Records of this test: lines of four octets."""
    return octets // 4 * 4


@pytest.fixture
def queue():
    made = OctetQueue(4096)
    yield made
    made.close()


def put(queue, octets):
    queue.put(octets)
    queue.publish(len(octets))
    queue.collect()


def write_all(files, queue, octets):
    put(queue, octets)
    while queue.waiting:
        assert files.write(queue)


def content(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_a_file_that_would_be_too_large_is_followed_by_the_next(tmp_path, queue):
    files = CaptureFiles(tmp_path / "x.cap", b"HEAD", lines, size_max=14)
    write_all(files, queue, b"1111222233334444")
    write_all(files, queue, b"5555")
    files.finish()
    assert content(tmp_path) == {
        "x.cap": b"HEAD11112222",
        "x.2.cap": b"HEAD33334444",
        "x.3.cap": b"HEAD5555",
    }


def test_only_files_of_this_run_are_removed(tmp_path, queue):
    (tmp_path / "x.2.cap").write_bytes(b"before")
    files = CaptureFiles(tmp_path / "x.cap", b"HEAD", lines, size_max=8, files_max=2)
    write_all(files, queue, b"1111")
    (tmp_path / "x.cap").unlink()
    (tmp_path / "x.cap").write_bytes(b"another's")
    write_all(files, queue, b"222233334444")
    files.finish()
    assert content(tmp_path) == {
        "x.2.cap": b"before",
        "x.cap": b"another's",
        "x.4.cap": b"HEAD3333",
        "x.5.cap": b"HEAD4444",
    }


def test_a_file_with_content_is_refused_and_an_empty_one_is_used(tmp_path, queue):
    path = tmp_path / "x"
    path.write_bytes(b"before")
    path.chmod(0o640)
    with pytest.raises(FileExistsError):
        CaptureFiles(path, b"HEAD", lines)
    assert path.stat().st_mode & 0o777 == 0o640
    for overwrite in True, False:
        files = CaptureFiles(path, b"HEAD", lines, overwrite=overwrite)
        write_all(files, queue, b"1111")
        files.finish()
        assert path.read_bytes() == b"HEAD1111"
        assert path.stat().st_mode & 0o777 == 0o600
        path.write_bytes(b"")


def test_two_recordings_do_not_share_a_file(tmp_path):
    files = CaptureFiles(tmp_path / "x", b"HEAD", lines)
    with pytest.raises(OSError, match="another recording goes there"):
        CaptureFiles(tmp_path / "x", b"HEAD", lines)
    files.finish()


def test_a_renamed_file_is_created_again_and_another_is_not_touched(tmp_path, queue):
    files = CaptureFiles(tmp_path / "x", b"HEAD", lines)
    write_all(files, queue, b"1111")
    files.reopen()
    write_all(files, queue, b"2222")
    (tmp_path / "x").rename(tmp_path / "old")
    files.reopen()
    write_all(files, queue, b"3333")
    (tmp_path / "x").rename(tmp_path / "older")
    (tmp_path / "x").write_bytes(b"another's")
    files.reopen()
    write_all(files, queue, b"4444")
    files.finish()
    assert content(tmp_path) == {
        "old": b"HEAD11112222",
        "older": b"HEAD3333",
        "x": b"another's",
        "x.2": b"HEAD4444",
    }


def test_a_new_reader_of_a_pipe_gets_the_header_and_whole_records(tmp_path, queue):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(OSError, match="No such device"):  # nobody reads
        CaptureFiles(tmp_path / "x", b"HEAD", lines)
    reader = os.open(tmp_path / "x", os.O_RDONLY | os.O_NONBLOCK)
    files = CaptureFiles(tmp_path / "x", b"HEAD", lines)
    write_all(files, queue, b"1111")
    assert files.write(queue)
    assert os.read(reader, 100) == b"HEAD1111"
    os.close(reader)
    put(queue, b"2222")
    with pytest.raises(BrokenPipeError):
        files.write(queue)
    reader = os.open(tmp_path / "x", os.O_RDONLY | os.O_NONBLOCK)
    write_all(files, queue, b"3333")
    while files.owes:
        files.write(queue)
    assert os.read(reader, 100) == b"HEAD3333"
    files.finish()
    os.close(reader)


def test_a_log_is_appended_to_and_is_its_owners_only(tmp_path, queue):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    path.chmod(0o644)
    log = LogFile(path)
    write_all(log, queue, b"1111")
    path.rename(tmp_path / "old")
    write_all(log, queue, b"2222")
    log.reopen()
    write_all(log, queue, b"3333")
    log.finish()
    assert content(tmp_path) == {"old": b"before\n11112222", "log": b"3333"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


# --- the process that writes


def test_what_was_put_is_written_even_if_the_service_is_killed(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from vtl_tools.common.host.record_file import LogFile\n"
        "from vtl_tools.common.host.scribe import Scribe\n"
        "scribe = Scribe(LogFile(Path(sys.argv[1])), 1 << 16)\n"
        "assert all(scribe.put(b'%d\\n' % n) for n in range(1000))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "log"
    subprocess.run([sys.executable, "-c", code, path], check=False)
    until(lambda: path.read_text().splitlines() == [str(n) for n in range(1000)], "all lines")


def test_a_file_that_cannot_be_created_again_is_tried_until_it_can(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    scribe = Scribe(LogFile(directory / "log"), 1 << 12)
    scribe.await_start()
    directory.rename(tmp_path / "old")
    scribe.reopen()
    assert [one["what"] for one in until(scribe.poll, "a failure")] == ["stopped"]
    scribe.put(b"meanwhile\n")
    (tmp_path / "old").rename(directory)
    assert [one["what"] for one in until(scribe.poll, "success")] == ["resumed"]
    scribe.put(b"later\n")
    assert scribe.close()
    assert (directory / "log").read_text() == "meanwhile\nlater\n"


def test_a_process_that_was_killed_is_told_once_and_costs_records_only(tmp_path):
    scribe = Scribe(LogFile(tmp_path / "log"), 1 << 12)
    os.kill(scribe._pid, 9)
    told = until(scribe.poll, "its end")
    assert [one["what"] for one in told] == ["ended"]
    assert not scribe.is_writing
    put = [scribe.put(bytes(1000)) for _ in range(10)]
    assert put == [True] * 4 + [False] * 6
    assert scribe.close()


def test_a_forked_process_does_not_write_into_the_queue_of_its_parent(tmp_path):
    scribe = Scribe(LogFile(tmp_path / "log"), 1 << 12, producers=2)
    if not os.fork():
        given = scribe.put(b"not mine\n")
        scribe.become(1)
        os._exit(0 if not given and scribe.put(b"child\n") else 1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert scribe.put(b"parent\n")
    assert scribe.close()
    assert sorted((tmp_path / "log").read_text().split()) == ["child", "parent"]
