"""The controls by name."""

from typing import Final

from vtl_tools.common.tcp.congestion.base import Congestion
from vtl_tools.common.tcp.congestion.bbr import Bbr
from vtl_tools.common.tcp.congestion.cubic import Cubic
from vtl_tools.common.tcp.congestion.newreno import NewReno

CONTROLS: Final[dict[str, type[Congestion]]] = {control.name: control for control in (NewReno, Cubic, Bbr)}
