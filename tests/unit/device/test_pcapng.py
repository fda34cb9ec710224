"""Blocks of pcapng: scapy reads what we write, and records stay whole in a queue that wraps around."""

import io
import os
import sys
import warnings
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.device.pcapng import INBOUND, OUTBOUND, file_header, put_frames, whole_blocks
from vtl_tools.common.host.octet_queue import OctetQueue
from vtl_tools.common.host.record_file import CaptureFiles

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from scapy.utils import RawPcapNgReader


def taken(queue, octets=None):
    queue.collect()
    octets = queue.waiting if octets is None else octets
    got = b"".join(queue.views(octets))
    queue.take(octets)
    return got


def read(octets):
    with RawPcapNgReader(io.BytesIO(octets)) as reader:
        return [
            (about.ifname.decode(), about.direction, about.tshigh << 32 | about.tslow, data)
            for data, about in reader
        ]


SENT = st.tuples(st.integers(0, 1), st.sampled_from([INBOUND, OUTBOUND]), st.binary(max_size=99))


NAME = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1)


@given(st.lists(SENT), st.tuples(NAME, NAME), st.integers(0, 1 << 33))
def test_scapy_reads_the_frames_that_we_write(frames, names, now):
    queue = OctetQueue(1 << 16)
    for link, direction, data in frames:
        assert put_frames(queue, link, [memoryview(data)], direction, now) == (1, 0)
    octets = file_header(names) + taken(queue)
    assert read(octets) == [(names[link], direction, now * 10**6, data) for link, direction, data in frames]
    queue.close()


def test_a_queue_that_wraps_around_loses_no_frame_and_counts_those_without_room():
    random, queue = Random(1), OctetQueue(4096)
    octets, sent, kept, lost = file_header(["a"]), [], 0, 0
    for _ in range(500):
        sent += (frames := [random.randbytes(random.randrange(1600)) for _ in range(random.randrange(5))])
        told = put_frames(queue, 0, map(memoryview, frames), INBOUND, 0.0)
        kept, lost = kept + told[0], lost + told[1]
        if random.random() < 0.7:
            octets += taken(queue)
    got = [data for *_, data in read(octets + taken(queue))]
    assert len(got) == kept
    assert kept + lost == len(sent)
    assert lost > 50
    rest = iter(sent)
    assert all(frame in rest for frame in got)  # in the order in which they were sent
    queue.close()


def test_records_are_told_apart_for_rotation():
    queue = OctetQueue(4096)
    put_frames(queue, 0, [memoryview(bytes(n)) for n in (60, 61, 62)], INBOUND, 0.0)
    queue.collect()
    first = queue.word(4)
    second = queue.word(first + 4)
    for octets, whole in (
        (0, 0),
        (first - 4, 0),
        (first, first),
        (first + second - 4, first),
        (queue.waiting, queue.waiting),
    ):
        assert whole_blocks(queue, octets) == whole
    queue.close()


@pytest.mark.parametrize("word", [0, 4, 13, 1 << 18, 0xFFFFFFF0, 0xFFFFFFFF])
def test_octets_that_are_no_records_do_not_hold_up_the_writer(word):
    queue = OctetQueue(4096)
    queue.put(bytes(4) + word.to_bytes(4, sys.byteorder) + bytes(100))
    queue.publish(108)
    queue.collect()
    assert whole_blocks(queue, 108) == 108
    queue.close()


@pytest.mark.parametrize("is_pipe", [False, True])
def test_a_record_without_end_makes_no_files_without_end(tmp_path, is_pipe):
    path, queue = tmp_path / "x.pcapng", OctetQueue(1 << 21)
    reader = -1
    if is_pipe:
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files = CaptureFiles(path, file_header(["a"]), whole_blocks, size_max=1 << 20)
    queue.put(bytes(4) + 0x7FFFFFFC.to_bytes(4, sys.byteorder) + bytes((1 << 21) - 8))
    queue.publish(1 << 21)
    queue.collect()
    for _ in range(1000):
        if queue.waiting and not files.write(queue):
            os.read(reader, 1 << 20)
    assert queue.waiting == 0
    assert len(list(tmp_path.iterdir())) <= 4
    files.finish()
    queue.close()
    if is_pipe:
        os.close(reader)
