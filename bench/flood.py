"""Send 60-byte frames from an interface as fast as it goes, for some seconds; print how long it took.

usage: flood.py INTERFACE SECONDS [DESTINATION-MAC | FRAME]      (a frame in hexadecimal digits)
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet.vnet import NONE


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    given = bytes.fromhex(sys.argv[3].replace(":", "")) if len(sys.argv) > 3 else b"\x02\0\0\0\0\x02"
    # An ethertype for experiments (IEEE 802): no stack does anything with it.
    frame = NONE + (given if len(given) > 6 else given + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(46))
    batch = Batch.of([frame] * 64)
    with PacketDevice(name, receive=False) as device:
        start = time.monotonic()
        end = start + seconds
        while time.monotonic() < end:
            for _ in range(16):
                device.write(batch)
    print(time.monotonic() - start)


if __name__ == "__main__":
    main()
