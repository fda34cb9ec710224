"""Child processes: what they keep of their parent, and how they end."""

import os
import subprocess


def end(process: "subprocess.Popen[bytes]", patience_s: float) -> None:
    """End a process by SIGTERM, or by SIGKILL if it has not ended after patience_s seconds. Wait for it."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def close_all_but(*kept: int) -> None:
    """Close all other descriptors of this process, a child, so that links and guards end with its parent."""
    last = -1
    for fd in [*sorted(set(kept)), os.sysconf("SC_OPEN_MAX")]:
        if fd > last + 1:  # closerange(0, 0) would close all
            os.closerange(last + 1, fd)
        last = fd
