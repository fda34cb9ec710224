"""A switch whose links delay what passes: what is between networks that are far apart.

usage: lab/wide_area.py SECONDS CONTROL-SOCKET INTERFACE...      (prints events, "ready" first)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.fault import Fault
from vtl_tools.common.runtime.runner import Options, Runner
from vtl_tools.services.bridge import Switch


def main() -> None:
    """Run until a signal. SECONDS are those of a passage, half of it on the way in, half on the way out."""
    delay_s, control, names = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    links = [Fault(PacketDevice(name), delay_s=delay_s / 2) for name in names]
    Runner(Switch(names), links, Options(service="wide-area", json=True, control=control)).run()


if __name__ == "__main__":
    main()
