"""A service that runs in a host of the lab, for the tests of kernels and of guests: mostly vtl-bridge."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.netns import Host, Lab
from lab.user import as_user
from lab.wait import PATIENCE_S
from tests.schemas import validated
from vtl_tools.common.runtime import control

BIN = Path(sys.executable).parent


def own_fields(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event without the members that tell of every event when, of what service and in what form."""
    return {k: v for k, v in event.items() if k not in ("schema", "time", "service", "link")}


class Bridge:
    """A running service: its process, its control socket, and the events that it printed."""

    def __init__(self, lab: Lab, process: subprocess.Popen[str], socket: Path) -> None:
        self.lab, self.process, self.socket = lab, process, socket
        self.events: list[dict[str, Any]] = []
        self.ready = self.event()

    def event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the service ended: {self.process.wait()}"
        self.events.append(validated(json.loads(line)))
        return self.events[-1]

    def wait_for(self, name: str, **members: object) -> dict[str, Any]:
        """The next event of a name that has these members."""
        expected = {"event": name, **members}
        while not expected.items() <= (event := self.event()).items():
            pass
        return event

    def status(self) -> dict[str, Any]:
        return validated(control.ask(self.socket, "status"))

    def drops(self) -> dict[str, int]:
        status = self.status()
        return status["drops"] | {k: v for link in status["links"] for k, v in link["drops"].items()}


@contextmanager
def bridge(
    lab: Lab,
    host: Host,
    *arguments: str | Path,
    name: str = "b",
    user: int | None = None,
    service: str = "vtl-bridge",
) -> Iterator[Bridge]:
    run = lab.dir / f"run-{user}"
    if not run.exists():
        run.mkdir(mode=0o700)
        if user is not None:
            os.chown(run, user, user)
    socket = lab.dir / f"run-{user}" / f"{name}.sock"
    tool = [BIN / service] if user is None else as_user(lab, host, service)
    process = host.popen(
        *tool, *arguments, "--control", socket, "--json", stdout=subprocess.PIPE, text=True, user=user
    )
    started = Bridge(lab, process, socket)
    yield started
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
