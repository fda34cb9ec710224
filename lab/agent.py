"""Talk to the shell that a guest runs for us on a virtio serial port, and to QEMU's own monitor.

No network takes part, so that a guest can be asked while its network is cut. lab/init.sh is the other end.
"""

import itertools
import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from lab.errors import LabError
from lab.wait import PATIENCE_S

RECV_OCTETS = 1 << 16


class Hangup(LabError):  # noqa: N818 - it says what happened
    """The other end has gone."""


class Late(LabError):  # noqa: N818 - it says what happened
    """No answer came in time."""


@dataclass(frozen=True)
class Result:
    """The result of a command in the guest. out, err: its output and errors, as text."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        """The output as text."""
        return self.stdout.decode(errors="replace")

    @property
    def err(self) -> str:
        """The errors as text."""
        return self.stderr.decode(errors="replace")


class Wire:
    """A stream that is read by lines and by counted octets, each up to a deadline (time.monotonic).

    Octets that came before a deadline passed stay for the next reader.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lock = threading.Lock()
        self._held = bytearray()

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of data."""
        self._arm(deadline)
        try:
            self.sock.sendall(data)
        except TimeoutError:
            raise Late("nothing is read there") from None
        except OSError as error:
            raise Hangup(str(error)) from None

    def peek_line(self, deadline: float) -> bytes:
        """Wait for a line and return it without taking it; its length includes the newline."""
        while (end := self._held.find(b"\n")) < 0:
            self._fill(deadline)
        return bytes(self._held[: end + 1])

    def peek(self, count: int, deadline: float) -> bytes:
        """Wait for `count` octets and return them without taking them."""
        while len(self._held) < count:
            self._fill(deadline)
        return bytes(self._held[:count])

    def take(self, count: int) -> None:
        """Take `count` octets that have been seen."""
        del self._held[:count]

    def _arm(self, deadline: float) -> None:
        if (left := deadline - time.monotonic()) <= 0:
            raise Late("no answer")
        self.sock.settimeout(left)

    def _fill(self, deadline: float) -> None:
        self._arm(deadline)
        try:
            data = self.sock.recv(RECV_OCTETS)
        except TimeoutError:
            raise Late("no answer") from None
        except OSError as error:
            raise Hangup(str(error)) from None
        if not data:
            raise Hangup("the connection ended")
        self._held += data


class Agent:
    """The guest's shell. One command at a time; a second thread waits for its turn."""

    def __init__(self, sock: socket.socket) -> None:
        self._wire = Wire(sock)
        self._tokens = itertools.count(1)

    def sh(self, script: str, stdin: bytes, timeout: float, grace: float = PATIENCE_S) -> Result:
        """Run a script in the guest. It is killed there after `timeout` seconds, rounded up.

        grace: seconds more that the answer may take before the guest itself counts as stuck.
        Status 137 tells that the script was killed.
        """
        deadline = time.monotonic() + timeout + grace
        code, wire = script.encode() + b"\n", self._wire
        with wire.lock:
            token = f"t{next(self._tokens)}"
            request = f"{token} {int(-(-timeout // 1))} {len(code)} {len(stdin)}\n"
            wire.send(request.encode() + code + stdin, deadline)
            while True:  # answers to those that gave up come first
                line = wire.peek_line(deadline)
                answered, status, out, err = line.decode().split()
                size = len(line) + int(out) + int(err)
                data = wire.peek(size, deadline)
                wire.take(size)
                if answered == token:
                    split = len(line) + int(out)
                    return Result(int(status), data[len(line) : split], data[split:])


class Monitor:
    """QEMU's monitor (QMP)."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._wire = Wire(sock)
        self.events: list[dict[str, Any]] = []  # what QEMU told unasked
        self._next(time.monotonic() + timeout)  # its greeting
        self.execute("qmp_capabilities", {}, timeout)

    def _next(self, deadline: float) -> dict[str, Any]:
        line = self._wire.peek_line(deadline)
        self._wire.take(len(line))
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, arguments: dict[str, Any], timeout: float) -> Any:
        """Run a QMP command and return what it returned. LabError if QEMU refused."""
        deadline = time.monotonic() + timeout
        request = {"execute": command, "arguments": arguments}
        with self._wire.lock:
            self._wire.send(json.dumps(request).encode() + b"\n", deadline)
            while True:
                message = self._next(deadline)
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise LabError(f"qmp: {command}: {message['error']['desc']}")
                self.events.append(message)
