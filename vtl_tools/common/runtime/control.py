"""The control socket: JSON lines over a unix socket of mode 0600, one per running service.

A request is {"verb": "status", ...}; the answer {"ok": true, "result": ...} or {"ok": false, "error": "..."}.
"""

import asyncio
import json
import os
import re
import socket
import stat
import struct
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vtl_tools.common.errors import NotRunningError, PermissionNeededError, VTLError
from vtl_tools.common.host import broker

LINE_MAX: Final = 1 << 16
"""Octets of the longest request."""
ANSWER_MAX: Final = 64 << 20
"""Octets of the longest answer that a client takes."""
CLIENTS_MAX: Final = 32
IDLE_S: Final = 60.0
"""How long a client may ask nothing."""
PATIENCE_S: Final = 10.0
"""How long a client may take to read its answer, or a service to give one."""

Result = dict[str, Any]
Verb = Callable[[Result], Result | Awaitable[Result]]


def directory() -> Path:
    """Return where control sockets live: $VTL_RUN, /run/vtl for root, or the user's runtime directory."""
    if chosen := os.environ.get("VTL_RUN"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/vtl")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "vtl"
    return Path(f"/tmp/vtl-{os.geteuid()}")  # noqa: S108 - its owner and mode are checked


def path_for(service: str, spec: str) -> Path:
    """Return the control socket of a service whose first link is `spec`."""
    name = re.sub(r"[^A-Za-z0-9_.@-]+", "_", spec)
    if len(name) > 40:  # a unix socket's whole path has room for 107 octets
        name = f"{name[:16]}..{name[-14:]}-{zlib.crc32(spec.encode()):08x}"
    return directory() / f"{service}-{name}.sock"


class ControlServer:
    """Answers verbs on one control socket. Clients are few, slow ones are dropped.

    where: a path to listen on, or a socket that is connected to the only client; on_end: told when that ends.
    """

    def __init__(
        self,
        where: Path | socket.socket,
        verbs: dict[str, Verb],
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self.where, self.verbs, self._on_end = where, verbs, on_end
        self._owner = os.geteuid()
        self._server: asyncio.Server | None = None
        self._file: broker.OwnSocket | None = None
        self._only: asyncio.Task[None] | None = None
        self._clients = 0

    async def start(self) -> None:
        """Listen. Replaces what a dead process left; raises VTLError where a live one listens."""
        if isinstance(self.where, socket.socket):
            streams = await asyncio.open_connection(sock=self.where, limit=LINE_MAX)
            self._only = asyncio.create_task(self._serve(*streams))
            self._only.add_done_callback(lambda _: self._on_end())
            return
        sock = _listen(self.where)
        self._file = broker.OwnSocket(self.where)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=LINE_MAX)

    def close(self) -> None:
        """Stop listening, and remove the socket."""
        if self._only is not None:
            self._only.cancel()
            self._only = None
        if self._server is not None:
            self._server.close()
            self._server = None
            assert self._file is not None
            self._file.remove()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        idle_s = None if self._only is not None else IDLE_S
        try:
            while self._clients <= CLIENTS_MAX and self._may_ask(writer):
                line = await asyncio.wait_for(reader.readline(), idle_s)
                if not line.endswith(b"\n"):
                    break
                answer = await self.answer(line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), PATIENCE_S)
                await asyncio.sleep(0)  # frames have their turn, also where the next request is here already
        except (ValueError, OSError, TimeoutError):
            pass  # an endless line, or a client that went away or does not read
        finally:
            self._clients -= 1
            writer.transport.abort()

    def _may_ask(self, writer: asyncio.StreamWriter) -> bool:
        """Whether a client is root's, or of the user who started the service."""
        return _user_of(writer.get_extra_info("socket")) in (0, self._owner)

    async def answer(self, line: bytes) -> Result:
        """Return the answer to one request line; whatever is wrong with it is said there."""
        try:
            request = json.loads(line)
            verb = self.verbs[request["verb"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"ok": False, "error": f"not a request; the verbs are {', '.join(sorted(self.verbs))}"}
        try:
            result = verb(request)
            return {"ok": True, "result": await result if isinstance(result, Awaitable) else result}
        except VTLError as e:
            return {"ok": False, "error": str(e)}


def _user_of(sock: socket.socket) -> int:
    """Return the user who connected to us, or who listened when we connected."""
    return int(struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.parent == directory():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.parent.stat()
        if found.st_uid not in (0, os.geteuid()) or (
            found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        ):
            raise VTLError(f"{path.parent}: others may write there; set VTL_RUN to a directory of your own")
        with suppress(FileNotFoundError, ConnectionRefusedError):
            _connect(path).close()
            raise VTLError(f"{path}: a service already runs there; stop it, or choose another with --control")
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise VTLError(f"{path}: exists and is not a socket; choose another with --control")
            path.unlink()
        old = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(old)
        sock.listen(CLIENTS_MAX)
    except OSError as e:
        sock.close()
        raise VTLError(
            f"{path}: no control socket: {e.strerror or e}; choose another with --control"
        ) from None
    except VTLError:
        sock.close()
        raise
    return sock


def _connect(path: Path) -> socket.socket:
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
    raise VTLError(f"{path}: user {server} answers there, and not a service of yours; name another socket")


def ask(path: Path, verb: str, *, patience_s: float = PATIENCE_S, **arguments: object) -> Result:
    """Ask a running service; return its result.

    patience_s: how long the answer may take. Raises NotRunningError, PermissionNeededError, or VTLError with
    what the service said.
    """
    try:
        with _connect(path) as sock, sock.makefile("rb") as answers:
            _believe(path, sock)
            sock.settimeout(patience_s)
            sock.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            line = answers.readline(ANSWER_MAX)
    except PermissionError:
        raise PermissionNeededError(f"{path}: not permitted to ask; run as the service's user") from None
    except (OSError, TimeoutError):
        raise NotRunningError(
            f"{path}: no service answers; see which run with 'vtl-SERVICE status'"
        ) from None
    return result_of(line, path)


def result_of(line: bytes, path: Path) -> Result:
    """Return the result in an answer. path: for messages. Raises as ask() does."""
    try:
        answer = json.loads(line)
        ok, said = answer["ok"], answer["result" if answer["ok"] else "error"]
        if ok and not isinstance(said, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotRunningError(f"{path}: the service went away in the middle of its answer") from None
    if not ok:
        raise VTLError(str(said))
    result: Result = said
    return result


def _is_dead(path: Path) -> bool:
    """Whether a socket is what a service left that was killed together with its broker."""
    try:
        _connect(path).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # which ask() tells of
        pass
    return False


def find(service: str, spec: str | None) -> list[Path]:
    """Return the control sockets of a service: the one on link `spec`, or all.

    spec may also be the path of a control socket.
    """
    if spec is not None:
        if spec.endswith(".sock") and "/" in spec:
            return [Path(spec)]
        return [path_for(service, spec)]
    found = [path for path in sorted(directory().glob(f"{service}-*.sock")) if not _is_dead(path)]
    if not found:
        raise NotRunningError("none runs here; start one, or name its control socket")
    return found
