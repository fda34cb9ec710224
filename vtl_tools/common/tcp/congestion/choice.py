"""The controls, by name."""

from typing import Final

from vtl_tools.common.tcp.congestion.base import Congestion
from vtl_tools.common.tcp.congestion.bbr import Bbr
from vtl_tools.common.tcp.congestion.cubic import Cubic
from vtl_tools.common.tcp.congestion.newreno import NewReno

CONTROLS: Final[dict[str, type[Congestion]]] = {control.name: control for control in (NewReno, Cubic, Bbr)}


def new_control(name: str, smss: int, initial_window: int) -> Congestion:
    """Return a control of this name for a connection."""
    if name == "newreno":  # the usual one, by a direct call
        return NewReno(smss, initial_window)
    return CONTROLS[name](smss, initial_window)
