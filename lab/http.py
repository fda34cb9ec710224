"""An HTTP server in a host: the plainest of real peers."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.host import Host
from lab.wait import until


@dataclass(frozen=True)
class Server:
    """A running HTTP server. files: the directory it serves. log: the file of its access log."""

    process: subprocess.Popen[Any]
    files: Path
    log: Path

    def requests(self) -> list[str]:
        """Return the access log's lines; each begins with the client's address."""
        lines = self.log.read_text().splitlines()
        return [line.removeprefix("::ffff:") for line in lines if '] "' in line]


def serve(host: Host, port: int, files: Mapping[str, bytes], directory: Path) -> Server:
    """Start Python's own server in `host`; return when it listens. directory: made here, for its files."""
    root = directory / "files"
    root.mkdir(parents=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    log = directory / "log"
    with log.open("wb") as out:
        command = [
            sys.executable,
            "-u",
            "-m",
            "http.server",
            str(port),
            "--bind",
            "::",
            "--directory",
            str(root),
        ]
        process = host.popen(*command, stdout=out, stderr=out)

    def listening() -> bool:
        if process.poll() is not None:
            raise LabError(f"http.server on {host.name}: {log.read_text()}")
        return "Serving HTTP" in log.read_text()

    until(listening, f"http.server on {host.name}")
    return Server(process, root, log)
