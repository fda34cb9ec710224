"""The broker does what was named to it, and nothing else. Each test has a process of its own."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.lab  # they need root


def run(script, *arguments):
    """Run a script with a directory of its own; it prints nothing unless something is wrong."""
    setting = (
        "import errno, os, socket, sys\nfrom pathlib import Path\nfrom vtl_tools.common.host import broker\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", setting + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_file_is_replaced_by_no_more_than_was_said(tmp_path):
    (tmp_path / "x").write_text("before")
    run(
        """
        file = broker.StateFile(sys.argv[1] + "/x", 10)
        os.umask(0)
        broker.start()
        file.replace(["0123", "456789"])
        assert Path(sys.argv[1], "x").read_text() == "0123456789"
        assert Path(sys.argv[1], "x").stat().st_mode & 0o777 == 0o600
        try:
            file.replace(["0123456789a"])
        except OSError as e:
            assert e.errno == errno.EINVAL
        for fd in -1, os.pipe()[0], os.open("/dev/zero", os.O_RDONLY), os.open(sys.argv[1], os.O_PATH):
            assert file._ask(fd)[0] == errno.EINVAL
        assert file.begin("later") and file.finish()
        assert Path(sys.argv[1], "x").read_text() == "later"
        assert os.listdir(sys.argv[1]) == ["x"]
        """,
        tmp_path,
    )


def test_only_what_root_or_we_wrote_is_taken(tmp_path):
    (tmp_path / "secret").write_text("secret")
    run(
        """
        os.chdir(sys.argv[1])
        taken = broker.HandedFile("x.import", 5)
        broker.start()
        def fails():
            try:
                taken.take()
            except OSError:
                return True
        assert fails()
        os.symlink("secret", "x.import")
        assert fails()
        os.unlink("x.import")
        os.mkfifo("x.import")
        assert fails()
        os.unlink("x.import")
        Path("x.import").write_text("theirs")
        os.chown("x.import", 60001, 60001)
        assert fails()
        os.chown("x.import", 0, 0)
        os.chmod("x.import", 0o666)
        assert fails()
        os.chmod("x.import", 0o644)
        assert taken.take() == b"theirs"
        assert not Path("x.import").exists()
        """,
        tmp_path,
    )


def test_a_socket_that_is_anothers_by_now_is_left_alone(tmp_path):
    run(
        """
        os.chdir(sys.argv[1])
        for name in "ours", "theirs":
            socket.socket(socket.AF_UNIX).bind(name)
        held = [broker.OwnSocket(name) for name in ("ours", "theirs")]
        broker.start()
        os.rename("theirs", "old")
        socket.socket(socket.AF_UNIX).bind("theirs")
        broker.stop()
        assert sorted(os.listdir(".")) == ["old", "theirs"]
        """,
        tmp_path,
    )


def test_a_signal_to_the_group_ends_the_broker_after_the_service(tmp_path):
    run(
        """
        import signal
        file = broker.StateFile(sys.argv[1] + "/x", 10)
        broker.start()
        broker.await_start()
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            os.kill(broker._pid, number)
        file.replace(["after"])
        broker.stop()
        assert Path(sys.argv[1], "x").read_text() == "after"
        """,
        tmp_path,
    )


def test_files_are_written_only_where_that_was_said(tmp_path):
    for name in "may", "not":
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("old")
    run(
        """
        from vtl_tools.common.host import confinement, privilege
        os.chdir(sys.argv[1])
        device = os.open("may/open", os.O_WRONLY | os.O_CREAT)
        privilege.keep_only(())
        confinement.deny_writing([Path("may"), Path("gone")])
        def denied(step):
            try:
                step()
            except OSError as e:
                return e.errno in (errno.EACCES, errno.EXDEV)
        Path("may/new").write_text("x")
        os.rename("may/new", "may/old")
        os.unlink("may/old")
        os.write(device, b"open already")
        Path("/dev/null").write_text("x")
        assert denied(lambda: Path("not/new").write_text("x"))
        assert denied(lambda: Path("not/old").write_text("x"))
        assert denied(lambda: os.truncate("not/old", 0))
        assert denied(lambda: os.unlink("not/old"))
        assert denied(lambda: os.rename("not/old", "may/old"))
        assert denied(lambda: os.link("not/old", "may/old"))
        assert denied(lambda: os.mkdir("may/directory"))
        assert denied(lambda: os.symlink("x", "may/link"))
        assert denied(lambda: os.mkfifo("may/pipe"))
        assert denied(lambda: os.execv("/bin/true", ["true"]))
        assert Path("not/old").read_text() == "old"
        """,
        tmp_path,
    )


def test_a_user_that_there_is_not_is_told(tmp_path):
    run(
        """
        from vtl_tools.common.host import privilege
        from vtl_tools.common.errors import SpecError
        assert privilege.account("root") is None
        assert privilege.account(None).name in ("vtl", "nobody")
        for name in "no-such-user", "", "a\\0b":
            try:
                privilege.account(name)
                print("found", name)
            except SpecError as e:
                assert str(e).startswith("--user: there is no user"), e
        """
    )


def test_only_root_becomes_another_user(tmp_path):
    run(
        """
        from vtl_tools.common.host import privilege
        from vtl_tools.common.errors import PermissionNeededError
        os.setresuid(65534, 65534, 65534)
        assert privilege.account(None) is None
        assert privilege.account("nobody") is None
        for name in "root", "daemon":
            try:
                privilege.account(name)
                print(name)
            except PermissionNeededError:
                pass
        """
    )
