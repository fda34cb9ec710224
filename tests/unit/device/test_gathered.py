"""Frames in pieces, gathered by the kernel: what a datagram socket sends of them."""

import errno
import socket

import pytest

from vtl_tools.common.device.batch import SLOTS
from vtl_tools.common.device.gathered import GatheredSender


@pytest.fixture
def ends():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        yield left, right


@pytest.fixture
def sender():
    made = GatheredSender()
    yield made
    made.close()


def views(*parts):
    return tuple(memoryview(bytearray(part)) for part in parts)


def test_each_frame_is_its_header_and_its_views(sender, ends):
    left, right = ends
    frames = [
        (b"head", *views(b"a" * 60_000)),
        (bytearray(b"ack"),),
        (b"another", *views(b"end of one", b"and the next")),
    ]
    for some in frames, frames[2:], frames[:1] * 2:
        joined = [b"".join(frame) for frame in some]
        assert sender.send(left.fileno(), some) == [len(frame) for frame in joined]
        assert [right.recv(1 << 17) for _ in some] == joined
    with pytest.raises(BlockingIOError):
        right.recv(1)


def test_nothing_holds_the_memory_afterwards(sender, ends):
    data = bytearray(b"data")
    assert sender.send(ends[0].fileno(), [(b"head", memoryview(data)[1:])]) == [7]
    data.append(0)


@pytest.mark.parametrize("data", [b"bytes", memoryview(b"a view of bytes")])
def test_memory_without_an_address_is_sent_in_another_way(sender, ends, data):
    left, right = ends
    assert sender.send(left.fileno(), [(b"head", *views(b"other")), (b"head", data)]) == []
    with pytest.raises(BlockingIOError):
        right.recv(1)


def test_what_the_kernel_does_not_take_has_its_reason(sender, ends):
    left, right = ends
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    results = sender.send(left.fileno(), [(b"head", *views(b"a" * 60_000))] * 8)
    assert results[0] == 60_004
    assert results[-1] == -errno.EAGAIN
    right.close()
    assert sender.send(left.fileno(), [(b"head",)] * 2)[-1] == -errno.EPIPE


def test_of_many_views_there_is_an_end(sender, ends):
    two, three = views(b"1", b"2"), views(b"1", b"2", b"3")
    assert sender.send(ends[0].fileno(), [(b"head", *two)] * (SLOTS - 1) + [(b"head", *three)]) == []


def test_frames_of_which_the_kernel_tells_nothing_are_not_sent_twice(sender, ends):
    left, right = ends
    sender._numbers = (*sender._numbers[:3], 9999)  # a filter of system calls without io_getevents
    assert sender.send(left.fileno(), [(b"head", *views(b"data"))] * 2) == [8, 8]
    assert [right.recv(100) for _ in range(2)] == [b"headdata"] * 2
    assert sender.send(left.fileno(), [(b"head",)] * 2) == []


def test_a_sender_that_was_closed_begins_anew(sender, ends):
    sender.close()
    assert sender.send(ends[0].fileno(), [(b"head",)]) == [4]
