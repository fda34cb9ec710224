"""Running our tools as an ordinary user, even where this tree lies in a directory that only root enters."""

import sys
import sysconfig
from pathlib import Path

from lab import kernel
from lab.netns import Host, Lab

NOBODY = 65534
_TREES = {
    "tree": Path(__file__).resolve().parent.parent,
    "site": Path(sysconfig.get_path("purelib")),
}


def as_user(lab: Lab, host: Host, tool: str) -> list[str]:
    """Return the command that runs a tool of ours in a host for who may not read this tree.

    The parts of the tree that it needs are mounted where everybody may look, in this host only.
    """
    return _command(lab.dir, host, tool)


def as_root_alone(lab: Lab, host: Host, tool: str) -> list[str]:
    """Likewise, where nobody but root may look, as if all were installed in root's home."""
    place = lab.dir / "roots"
    place.mkdir(mode=0o700, exist_ok=True)
    return _command(place, host, tool)


def _command(place: Path, host: Host, tool: str) -> list[str]:
    for name, source in _TREES.items():
        target = place / name
        target.mkdir(exist_ok=True)
        if not host.call(target.is_mount):
            host.call(kernel.mount, str(source), str(target), None, kernel.MS_BIND)
    search = ":".join(str(place / name) for name in _TREES)
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    module = "vtl_tools.cmd." + tool.partition("-")[2]
    code = f"import sys; sys.argv[0] = '{tool}'; from {module} import main; main()"
    return ["env", f"PYTHONPATH={search}", str(python), "-c", code]
