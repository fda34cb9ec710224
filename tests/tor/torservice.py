"""A vtl-tor that runs in a host of the lab, with what it printed."""

import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN
from tests.schemas import validated
from vtl_tools.common.runtime import control

_NUMBERS = itertools.count()


class Service:
    """Its process, its control socket, and its events so far."""

    def __init__(self, host: Host, process: subprocess.Popen[str], socket: Path, errors: Path) -> None:
        self.host, self.process, self.socket, self.errors = host, process, socket, errors
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def wait_for(self, name: str, condition: Callable[[dict[str, Any]], bool] = lambda event: True) -> Any:
        """Wait for an event, and return it."""

        def found() -> dict[str, Any] | None:
            assert self.process.poll() is None or self._reader.is_alive(), f"it ended: {self.said()}"
            return next((e for e in self.events if e["event"] == name and condition(e)), None)

        until(lambda: found() is not None, f"{name} of vtl-tor: {self.said()}", 60)
        return validated(found() or {})

    def said(self) -> str:
        return self.errors.read_text()

    @property
    def pid(self) -> int:
        """Its PID as it sees it, for who is in its PID namespace."""
        return int(self.wait_for("ready")["pid"])

    def ask(self, verb: str) -> Any:
        return control.ask(self.socket, verb)

    def status(self) -> Any:
        return validated(self.ask("status"))

    def kill(self) -> None:
        """As the kernel would, when memory is short."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE_S)
        self._reader.join(5)


@contextmanager
def vtl_tor(
    lab: Lab, host: Host, *options: str | Path, link: str = "vmnet1", ready: bool = True, **more: Any
) -> Iterator[Service]:
    """Run vtl-tor on a link of a host until the end of the block."""
    name = f"vtl-tor-{next(_NUMBERS)}"
    errors, socket = lab.dir / f"{name}.errors", lab.dir / f"{name}.sock"
    with errors.open("w") as err:
        process = host.popen(
            BIN / "vtl-tor", "--iface", link, "--json", "--control", socket, *options,
            stdout=subprocess.PIPE, stderr=err, text=True, **more,
        )  # fmt: skip
    service = Service(host, process, socket, errors)
    try:
        if ready:
            service.wait_for("ready")
        yield service
    finally:
        service.end()
