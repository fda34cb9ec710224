"""A service that gave up root has its sockets tuned by the broker, within what was said before."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.lab


def test_buffers_and_congestion_control_of_a_service_that_is_not_root_any_more() -> None:
    script = """
        import errno, os, socket
        from vtl_tools.common.host import broker, privilege
        from vtl_tools.common.host.socket_tuner import CONGESTION, RECEIVE, SEND, SocketTuner

        MOST = 256 << 20
        tuner = SocketTuner(MOST, "cubic")
        broker.start()
        privilege.drop_privileges((), privilege.account("nobody"))
        assert os.getuid() and not privilege.permitted()

        def size(sock, option):
            return sock.getsockopt(socket.SOL_SOCKET, option)

        for family in socket.AF_INET, socket.AF_INET6:
            with socket.socket(family) as sock:
                tuner.set_buffer(sock, SEND, 100 << 20)
                tuner.set_buffer(sock, RECEIVE, 1 << 40)
                assert size(sock, socket.SO_SNDBUF) == 100 << 20
                assert size(sock, socket.SO_RCVBUF) == MOST
                tuner.set_congestion(sock)
                name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                assert name.strip(b"\\0") == b"cubic"
                for word in (MOST // 1024 + 1) * 4 + SEND, 3, 0xFFFF_FFFF:
                    assert tuner._ask(sock.fileno(), word=word)[0] == errno.EINVAL
        for other in socket.socket(socket.AF_UNIX), socket.socket(type=socket.SOCK_DGRAM):
            assert tuner._ask(other.fileno(), word=CONGESTION)[0] == errno.EINVAL
        assert tuner._ask(os.memfd_create("x"), word=CONGESTION)[0] == errno.ENOTSOCK
        assert tuner._ask(-1)[0] == errno.EINVAL
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
