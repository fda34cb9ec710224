"""Ends a child process."""

import subprocess


def end(process: "subprocess.Popen[bytes]", patience_s: float) -> None:
    """End a process by SIGTERM, or by SIGKILL if it has not ended after patience_s seconds. Wait for it."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
