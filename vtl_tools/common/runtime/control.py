"""The control socket: JSON lines over a unix socket of mode 0600, one per running service.

A request is {"verb": "status", ...}; the answer {"ok": true, "result": ...} or {"ok": false, "error": "..."}.
A descriptor may come with a request (SCM_RIGHTS) that is sent when all before it were answered. The verb
finds it in the request as `upload`, a SealedFile.
"""

import asyncio
import json
import os
import pwd
import re
import socket
import stat
import struct
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from vtl_tools.common.errors import DiedError, NotRunningError, PermissionNeededError, VTLError
from vtl_tools.common.host import broker
from vtl_tools.common.runtime import run_record
from vtl_tools.common.runtime.sealed_file import SealedFile

LINE_MAX: Final = 1 << 16
"""Octets of the longest request."""
ANSWER_MAX: Final = 64 << 20
"""Octets of the longest answer that a client takes."""
CLIENTS_MAX: Final = 32
_BACKLOG: Final = 128
"""Clients that wait to be accepted, or to be refused."""
IDLE_S: Final = 60.0
"""How long a client may be silent."""
PATIENCE_S: Final = 10.0
"""How long a client may take to read its answer, or a service to give one."""
_PAUSE_S: Final = 1.0
"""How long no client is accepted after the process ran out of descriptors."""

ROOTS: Final = Path("/run/vtl")
"""The directory of the control sockets of root's services."""

Result = dict[str, Any]


class LineStream(Protocol):
    """The result of a verb whose answer, `result`, is followed by lines until either side ends."""

    result: Result

    async def serve(self, sock: socket.socket) -> None:
        """Send lines on a non-blocking socket."""
        ...

    def close(self) -> None:
        """Send no more. Idempotent."""
        ...


Verb = Callable[[Result], Result | Awaitable[Result] | LineStream]


def directory() -> Path:
    """Return where control sockets live: $VTL_RUN, /run/vtl for root, or the user's runtime directory."""
    if chosen := os.environ.get("VTL_RUN"):
        return Path(chosen)
    if os.geteuid() == 0:
        return ROOTS
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "vtl"
    return Path(f"/tmp/vtl-{os.geteuid()}")  # noqa: S108 - its owner and mode are checked


def path_for(service: str, spec: str) -> Path:
    """Return the control socket of a service whose first link is `spec`."""
    name = re.sub(r"[^A-Za-z0-9_.@-]+", "_", spec)
    if len(name) > 40:  # a unix socket's whole path has room for 107 octets
        name = f"{name[:16]}..{name[-14:]}-{zlib.crc32(spec.encode()):08x}"
    return directory() / f"{service}-{name}.sock"


class _Channel:
    """Lines from a client, and the descriptors that come with them."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._upload: SealedFile | None = None
        self._octets = bytearray()
        sock.setblocking(False)

    async def request(self) -> tuple[bytes, SealedFile | None]:
        """Return the next line, empty at the end, and the descriptor that came with it, now the caller's.

        Raises ValueError for a line that is too long, or has two descriptors, and OSError.
        """
        while (end := self._octets.find(b"\n")) < 0:
            if len(self._octets) > LINE_MAX:
                raise ValueError
            octets = await self._receive()
            if not octets:
                return b"", None
            self._octets += octets
        line = bytes(self._octets[: end + 1])
        del self._octets[: end + 1]
        upload, self._upload = self._upload, None
        return line, upload

    async def _receive(self) -> bytes:
        while True:
            try:
                octets, fds, _, _ = socket.recv_fds(self.sock, LINE_MAX, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await _readable(self.sock)
                continue
            if fds and self._upload is not None:
                os.close(fds[0])
                raise ValueError
            if fds:
                self._upload = SealedFile(fds[0])
            return octets

    async def answer(self, answer: Result) -> None:
        """Send a line."""
        await asyncio.get_running_loop().sock_sendall(self.sock, json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        """Close the socket, and the descriptor of a line that never ended."""
        self.sock.close()
        if self._upload is not None:
            self._upload.close()


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def on_readable() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, on_readable)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


class ControlServer:
    """Answers verbs on one control socket. Clients are few, slow ones are dropped.

    where: a path to listen on, or a socket that is connected to the only client; on_end: called when that
    client has gone. record: kept while it listens.
    """

    def __init__(
        self,
        where: Path | socket.socket,
        verbs: dict[str, Verb],
        on_end: Callable[[], object] = lambda: None,
        record: run_record.RunRecordFile | None = None,
    ) -> None:
        self.where, self.verbs, self._on_end, self._record = where, verbs, on_end, record
        self._owner = os.geteuid()
        self._listener: socket.socket | None = None
        self._file: broker.OwnSocket | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Replaces the socket of a dead process; raises VTLError where a live one listens."""
        if isinstance(self.where, socket.socket):
            only = self._begin(self.where, None)
            only.add_done_callback(lambda _: self._on_end())
            return
        self._listener = listen_on(self.where, "--control")
        self._listener.setblocking(False)
        self._file = broker.OwnSocket(self.where)
        if self._record is not None:
            self._record.begin()
            self._beat(self._record)
        self._listen()

    def _beat(self, record: run_record.RunRecordFile) -> None:
        record.beat()
        self._alarm = asyncio.get_running_loop().call_later(run_record.BEAT_S, self._beat, record)

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop listening, remove the socket, and drop the clients. Idempotent."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            assert self._file is not None
            self._file.remove()
        if self._record is not None and self._alarm is not None:
            self._alarm.cancel()
            self._record.end()
        for task in self._clients:
            task.cancel()

    def _accept(self) -> None:
        """Take one client. A refused one learns it by the end of the connection."""
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor or no memory is left; the client stays in the queue meanwhile
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            loop.call_later(_PAUSE_S, self._listen)
            return
        if len(self._clients) < CLIENTS_MAX and _user_of(sock) in (0, self._owner):
            self._begin(sock, IDLE_S)
        else:
            sock.close()

    def _begin(self, sock: socket.socket, idle_s: float | None) -> "asyncio.Task[None]":
        channel = _Channel(sock)
        task = asyncio.create_task(self._serve(channel, idle_s))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        task.add_done_callback(lambda _: channel.close())  # also if it was cancelled before it began
        return task

    async def _serve(self, channel: _Channel, idle_s: float | None) -> None:
        stream: LineStream | None = None
        try:
            while stream is None:
                line, upload = await asyncio.wait_for(channel.request(), idle_s)
                if not line:
                    break
                try:
                    answer, stream = await self.reply(line, upload)
                finally:
                    if upload is not None:
                        upload.close()
                await asyncio.wait_for(channel.answer(answer), PATIENCE_S)
                await asyncio.sleep(0)  # frames have their turn, even if the next request is here already
            else:
                await stream.serve(channel.sock)
        except (ValueError, OSError, TimeoutError):
            pass  # the line is too long, or the client has gone or does not read
        finally:
            if stream is not None:
                stream.close()

    async def reply(self, line: bytes, upload: SealedFile | None = None) -> tuple[Result, LineStream | None]:
        """Return the answer to one request line, and the stream that follows. An error becomes an answer."""
        try:
            request = json.loads(line)
            verb = self.verbs[request["verb"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            error = f"not a request; the verbs are {', '.join(sorted(self.verbs))}"
            return {"ok": False, "error": error}, None
        request["upload"] = upload  # also when the line has a member of that name
        try:
            result = verb(request)
            if isinstance(result, dict):
                return {"ok": True, "result": result}, None
            if isinstance(result, Awaitable):
                return {"ok": True, "result": await result}, None
            return {"ok": True, "result": result.result}, result
        except VTLError as e:
            return {"ok": False, "error": str(e)}, None


def _user_of(sock: socket.socket) -> int:
    """Return the user who connected to us, or who listened when we connected."""
    return int(struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])


def listen_on(path: Path, option: str) -> socket.socket:
    """Return a unix socket of mode 0600 that listens. Replaces that of a dead process.

    option: names another path. Raises VTLError, also where a process listens or others may write.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.parent == directory():
            # Others may see root's services, though not ask them: 'status' tells them why it says no more.
            path.parent.mkdir(mode=0o755 if path.parent == ROOTS else 0o700, parents=True, exist_ok=True)
        found = path.parent.stat()
        if found.st_uid not in (0, os.geteuid()) or (
            found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        ):
            raise VTLError(
                f"{path.parent}: other users may write there; set VTL_RUN to a directory of your own"
            )
        with suppress(FileNotFoundError, ConnectionRefusedError):
            connect(path).close()
            raise VTLError(f"{path}: a service already runs there; stop it, or choose another with {option}")
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise VTLError(f"{path}: exists and is not a socket; choose another with {option}")
            path.unlink()
        old = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(old)
        sock.listen(_BACKLOG)
    except OSError as e:
        sock.close()
        raise VTLError(f"{path}: no socket: {e.strerror or e}; choose another with {option}") from None
    except VTLError:
        sock.close()
        raise
    return sock


def connect(path: Path) -> socket.socket:
    """Return a socket that is connected to a service. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def _believe(path: Path, sock: socket.socket) -> None:
    """Raise VTLError unless a service is root's or ours, or, where root asks, of the directory's owner."""
    server, us = _user_of(sock), os.geteuid()
    directory = path.parent.stat()
    is_closed = not directory.st_mode & 0o022
    if server in (0, us) or (us == 0 and is_closed and server == directory.st_uid):
        return
    raise VTLError(f"{path}: user {server} answers there, not a service of yours; name another socket")


def ask(
    path: Path,
    verb: str,
    *,
    patience_s: float = PATIENCE_S,
    upload: SealedFile | None = None,
    **arguments: object,
) -> Result:
    """Ask a running service; return its result.

    patience_s: how long the answer may take. upload: goes along, and stays the caller's. Raises
    NotRunningError (DiedError if its record tells of its death), PermissionNeededError, or VTLError with the
    service's message.
    """
    try:
        with connect(path) as sock, sock.makefile("rb") as answers:
            _believe(path, sock)
            sock.settimeout(patience_s)
            line = json.dumps({"verb": verb, **arguments}).encode() + b"\n"
            if upload is not None:
                line = line[socket.send_fds(sock, [line], [upload.fd]) :]
            sock.sendall(line)
            line = answers.readline(ANSWER_MAX)
    except OSError as e:  # also a time-out
        raise _unheard(path, e) from None
    return result_of(line, path)


def open_stream(path: Path, verb: str, **arguments: object) -> tuple[socket.socket, Result, bytes]:
    """Ask for a verb whose answer goes on. Return the connection, the result, and octets that came behind it.

    Raises as ask() does.
    """
    try:
        sock = connect(path)
        try:
            _believe(path, sock)
            sock.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            octets = b""
            while b"\n" not in octets and (more := sock.recv(LINE_MAX)) and len(octets) < ANSWER_MAX:
                octets += more
            line, _, rest = octets.partition(b"\n")
            result = result_of(line, path)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        raise _unheard(path, e) from None
    return sock, result, rest


def _unheard(path: Path, error: OSError) -> VTLError:
    """Return why a service was not heard, as an error for users."""
    if isinstance(error, PermissionError):
        return PermissionNeededError(f"{path}: not permitted to ask; run as {owner_of(path)}")
    record = run_record.read(run_record.record_of(path))
    if record is not None and not record.is_locked:
        return DiedError(record.obituary())
    return NotRunningError(f"{path}: no service answers; see which run with 'vtl-SERVICE status'")


def owner_of(path: Path) -> str:
    """Return the user whose service has, or had, a control socket."""
    record = run_record.record_of(path)
    try:
        uid = (path if path.exists() else record).lstat().st_uid
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
    except OSError:
        return "the service's user"


def result_of(line: bytes, path: Path) -> Result:
    """Return the result in an answer. path: for messages. Raises as ask() does."""
    try:
        answer = json.loads(line)
        ok, said = answer["ok"], answer["result" if answer["ok"] else "error"]
        if ok and not isinstance(said, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotRunningError(
            f"{path}: the service ended before its answer was complete; start it again"
        ) from None
    if not ok:
        raise VTLError(str(said))
    result: Result = said
    return result
