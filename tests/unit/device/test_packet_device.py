"""A link on an interface, without one."""

import errno
import socket

from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.host import interface


def test_an_interface_that_cannot_be_opened_again_yet_is_tried_again(monkeypatch):
    """It was created again while no descriptor was left; a socket in a fanout group is not bound again."""

    def fails():
        raise OSError(errno.EMFILE, "Too many open files")

    device = PacketDevice("eth0", fanout=1)
    device._sock, other = socket.socketpair()
    device.handle.watch(device._sock.fileno())
    monkeypatch.setattr(interface, "name_of", lambda index: None)
    monkeypatch.setattr(socket, "if_nametoindex", lambda name: 7)
    monkeypatch.setattr(device, "_open", fails)
    with other:
        for _ in range(2):
            device._look_again()
            assert not device.up
    device.close()
