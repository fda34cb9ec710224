"""Frames received from a packet socket, and how they lie in the batch."""

import socket

from vtl_tools.common.device.batch import FRAME_MAX, HEADROOM
from vtl_tools.common.device.packet_io import PacketReceiver
from vtl_tools.common.packet.vnet import NONE


def test_frames_that_do_not_fit_move_no_later_one():
    """Each had a VLAN tag, which is put back into the headroom."""
    receiver = PacketReceiver()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        receiver._tpids[0] = 0x8100
        for number in range(1, HEADROOM // 4 + 3):
            left.send(bytes(FRAME_MAX + 2 * HEADROOM))
            assert receiver.receive(right.fileno()) == 0
            assert not receiver.batch
            assert receiver.truncated == number
        receiver._tpids[0] = 0
        left.send(NONE + b"\xff" * 60)
        assert receiver.receive(right.fileno()) == 0
        assert [bytes(frame) for frame in receiver.batch] == [NONE + b"\xff" * 60]
        assert receiver.batch.is_plain
