"""The control server: descriptors that come with requests, and clients that mean ill."""

import asyncio
import fcntl
import json
import os
import resource
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.descriptors import descriptors
from vtl_tools.common.errors import VTLError
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.sealed_file import SEALS, SealedFile


@pytest.fixture
def path():
    """A socket's path, short enough."""
    with tempfile.TemporaryDirectory(prefix="vtl-") as name:
        yield Path(name) / "x.sock"


def serve(path, client: Callable[[], object]):
    """Run a server whose verb `read` tells what came along, while the client does its work in a thread."""

    def read(request):
        upload = request["upload"]
        return {"octets": None if upload is None else upload.read(1 << 20).decode()}

    async def both():
        server = control.ControlServer(path, {"read": read})
        await server.start()
        try:
            return await asyncio.to_thread(client)
        finally:
            server.close()
            await asyncio.sleep(0)

    return asyncio.run(both())


@contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        yield sock


@pytest.mark.parametrize("turns", range(6))
def test_a_client_that_connects_as_the_service_ends_leaves_no_descriptor(path, turns):
    async def end_with_a_client():
        server = control.ControlServer(path, {})
        await server.start()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            for _ in range(turns):
                await asyncio.sleep(0)
            server.close()
            await asyncio.sleep(0)

    before = descriptors()
    asyncio.run(end_with_a_client())
    assert descriptors() == before


def test_a_file_goes_along_with_its_own_request_only(path):
    def client():
        with SealedFile.of([b"a" * 100_000, b"b"]) as upload:
            first = control.ask(path, "read", upload=upload)
        return first, control.ask(path, "read"), control.ask(path, "read", other="x" * 60_000)

    first, second, third = serve(path, client)
    assert first["octets"] == "a" * 100_000 + "b"
    assert second == third == {"octets": None}


def test_a_descriptor_in_the_middle_of_a_line_belongs_to_it(path):
    def client():
        with connected(path) as sock, sock.makefile("rb") as answers, SealedFile.of([b"x"]) as upload:
            sock.sendall(b'{"verb":')
            socket.send_fds(sock, [b' "read"'], [upload.fd])
            sock.sendall(b', "upload": "y"}\n{"verb": "read"}\n')
            return [json.loads(answers.readline())["result"]["octets"] for _ in range(2)]

    assert serve(path, client) == ["x", None]


def test_a_line_with_two_descriptors_ends_the_connection_and_both_are_closed(path):
    def client():
        with connected(path) as sock, SealedFile.of([b"x"]) as upload:
            for piece in b'{"verb":', b' "read"}\n':
                socket.send_fds(sock, [piece], [upload.fd])
            try:
                return sock.recv(100)
            except ConnectionResetError:
                return b""

    before = descriptors()
    assert serve(path, client) == b""
    assert descriptors() == before


def test_a_client_that_goes_in_the_middle_of_a_line_leaves_no_descriptor(path):
    before = descriptors()

    def client():
        for _ in range(20):
            with connected(path) as sock, SealedFile.of([b"x"]) as upload:
                socket.send_fds(sock, [b"{"], [upload.fd])
        return control.ask(path, "read")

    assert serve(path, client) == {"octets": None}
    assert descriptors() == before


def test_a_server_without_descriptors_goes_on_when_there_are_some_again(path, monkeypatch):
    monkeypatch.setattr(control, "_PAUSE_S", 0.01)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def client():
        with ExitStack() as stack:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(20)
            free = os.dup(sock.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                sock.connect(str(path))
                sock.sendall(b'{"verb": "read"}\n')
                sock.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    sock.recv(100)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            sock.settimeout(20)
            return json.loads(sock.recv(100))

    assert serve(path, client) == {"ok": True, "result": {"octets": None}}


@pytest.mark.parametrize("missing", ["F_SEAL_SEAL", "F_SEAL_WRITE", "F_SEAL_GROW", "F_SEAL_SHRINK"])
def test_a_file_that_can_still_change_is_not_read(missing):
    with SealedFile(os.memfd_create("x", os.MFD_ALLOW_SEALING)) as file:
        fcntl.fcntl(file.fd, fcntl.F_ADD_SEALS, SEALS & ~getattr(fcntl, missing))
        with pytest.raises(VTLError, match="not a sealed memory file"):
            file.read(100)


def test_a_file_is_not_read_beyond_its_bound_and_cannot_grow():
    with SealedFile.of([b"x" * 100]) as file:
        assert file.read(100) == b"x" * 100
        with pytest.raises(VTLError, match="at most"):
            file.read(99)
        with pytest.raises(PermissionError):
            os.write(file.fd, b"x")
        with pytest.raises(PermissionError):
            os.truncate(file.fd, 200)
