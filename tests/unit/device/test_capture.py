"""Captures: replayed as a link, and recorded from any link; scapy writes what we read, and reads ours."""

import asyncio
import gzip
import logging
import os
import warnings
from contextlib import closing
from pathlib import Path

import pytest

from lab.wait import until
from tests.unit.device.helpers import ether, octets, plain, read_all, ready, tcp
from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.device.memory import pair
from vtl_tools.common.device.pcap import PcapDevice
from vtl_tools.common.device.record import Record
from vtl_tools.common.device.recording import CaptureLimits, Recording
from vtl_tools.common.errors import DeviceError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from scapy.utils import RawPcapNgReader, RawPcapNgWriter, RawPcapWriter

FRAMES = [ether(n, 60 + n) for n in range(2 * SLOTS + 5)]


def capture(path, frames=FRAMES, kind=RawPcapWriter, start=100.0, step=0.5, linktype=1):
    writer = kind(str(path), linktype=linktype) if kind is RawPcapWriter else kind(str(path))
    writer.linktype = linktype
    writer.write_header(b"")
    for n, frame in enumerate(frames):
        now = start + n * step
        if kind is RawPcapWriter:
            writer.write_packet(frame, sec=int(now), usec=int(now % 1 * 1e6))
        else:
            writer.write_packet(frame, sec=now, usec=0)
    writer.close()
    return str(path)


def records(path):
    """What scapy reads in a pcapng file."""
    with closing(RawPcapNgReader(path)) as reader:
        return list(reader)


def replay(device):
    got = []
    while not device.finished:
        assert ready(device)
        got += octets(device.read())
    return got


@pytest.mark.parametrize("kind", [RawPcapWriter, RawPcapNgWriter])
def test_a_capture_is_replayed_and_finished_at_its_end(tmp_path, kind):
    with PcapDevice("pcap:x", capture(tmp_path / "x", kind=kind)) as device:
        assert replay(device) == FRAMES
        assert device.rx_frames == len(FRAMES)
        assert not device.read()


def test_a_compressed_capture_is_replayed(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress((tmp_path / capture(tmp_path / "x")).read_bytes()))
    with PcapDevice("pcap:x", str(path)) as device:
        assert replay(device) == FRAMES


def test_it_ends_an_asynchronous_loop(tmp_path):
    async def read(path):
        async with PcapDevice("pcap:x", path) as device:
            return [frame async for batch in device for frame in octets(batch)]

    for frames in FRAMES, FRAMES[:1], [b"runt"], []:
        path = capture(tmp_path / "x", frames)
        expected = [frame for frame in frames if frame != b"runt"]
        assert asyncio.run(asyncio.wait_for(read(path), 30)) == expected


@pytest.mark.parametrize(("speed", "interval"), [(1.0, 0.5), (10.0, 0.05)])
def test_in_step_with_a_clock(tmp_path, speed, interval):
    now = 5.0
    path = capture(tmp_path / "x", FRAMES[:3])
    with PcapDevice("pcap:x", path, speed=speed, clock=lambda: now) as device:
        assert octets(device.read()) == FRAMES[:1]
        now += interval * 0.99
        assert not device.read()
        now += interval * 0.02
        assert octets(device.read()) == FRAMES[1:2]
        assert not device.finished
        now += interval
        assert octets(device.read()) == FRAMES[2:3]
        assert device.finished


def test_in_real_time_the_handle_waits(tmp_path):
    with PcapDevice("pcap:x", capture(tmp_path / "x", FRAMES[:3], step=0.5), speed=50.0) as device:
        assert read_all(device, 3) == FRAMES[:3]


def test_what_is_sent_goes_to_another_file_as_plain_frames(tmp_path):
    out = str(tmp_path / "out")
    with PcapDevice("pcap:x", capture(tmp_path / "x"), write=out) as device:
        assert device.write(Batch.of([plain(1), tcp(b"x" * 3000, gso_size=1000)])) == 4
    assert [len(frame) for frame, _ in records(out)] == [60, 1054, 1054, 1054]


def test_runts_are_counted(tmp_path):
    with PcapDevice("pcap:x", capture(tmp_path / "x", [b"runt", FRAMES[0]])) as device:
        assert replay(device) == FRAMES[:1]
        assert device.drops == {Drop.RUNT: 1}


@pytest.mark.parametrize(
    "content", [b"", b"not a capture at all", b"\xd4\xc3\xb2\xa1short", b"\x0a\x0d\x0d\x0a" * 9]
)
def test_what_is_no_capture_is_an_error_in_one_line(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DeviceError, match=r"^pcap:x: .*; name a pcap or pcapng file$"):
        with PcapDevice("pcap:x", str(tmp_path / "x")):
            pass


def test_a_capture_of_other_frames_is_an_error(tmp_path):
    with pytest.raises(DeviceError, match=r"not Ethernet \(link type 101\)"):
        with PcapDevice("pcap:x", capture(tmp_path / "x", linktype=101)):
            pass


def test_files_that_cannot_be_had_are_errors(tmp_path):
    with pytest.raises(DeviceError, match="No such file"):
        with PcapDevice("pcap:x", str(tmp_path / "no")):
            pass
    with pytest.raises(DeviceError, match="name a file that can be written"):
        with PcapDevice("pcap:x", capture(tmp_path / "x"), write=str(tmp_path / "no" / "out")):
            pass


@pytest.mark.parametrize("kind", [RawPcapWriter, RawPcapNgWriter])
def test_a_capture_that_is_cut_anywhere_gives_the_frames_before(tmp_path, kind):
    whole = (tmp_path / capture(tmp_path / "x", FRAMES[:2], kind=kind)).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:end])
        try:
            with PcapDevice("pcap:x", str(tmp_path / "cut")) as device:
                got = replay(device)
        except DeviceError:
            continue
        assert all(frame == FRAMES[n][: len(frame)] for n, frame in enumerate(got))


def recording(path, links=("eth0",), **limits):
    return Recording("--pcap", Path(path), links, CaptureLimits(**limits))


def test_both_directions_of_several_links_go_to_one_file(tmp_path):
    path = str(tmp_path / "out")
    writer = recording(path, ["memory:left", "memory:other"])
    a, a_far = pair(offload=True)
    b, b_far = pair()
    with (
        Record(a, writer, 0, clock=lambda: 7.25) as left,
        Record(b, writer, 1, clock=lambda: 8.5) as right,
        a_far,
        b_far,
    ):
        super_segment = tcp(b"x" * 3000, gso_size=1000)
        a_far.write(Batch.of([plain(1), super_segment]))
        batch = left.read()
        right.write(batch)
        left.write(Batch.of([plain(3)]))
        assert len(b_far.read()) == 4
    writer.close()
    writer.close()
    found = records(path)
    assert [data for data, _ in found] == [
        ether(1),
        super_segment[10:],
        ether(1),
        super_segment[10:],
        ether(3),
    ]
    assert [(about.ifname, about.direction) for _, about in found] == [
        (b"memory:left", 1),
        (b"memory:left", 1),
        (b"memory:other", 2),
        (b"memory:other", 2),
        (b"memory:left", 2),
    ]
    assert [(about.tshigh << 32 | about.tslow) / about.tsresol for _, about in found] == [7.25] * 2 + [
        8.5
    ] * 2 + [7.25]


def test_a_link_that_comes_later_is_an_interface_of_each_file_from_then_on(tmp_path):
    path = tmp_path / "out.pcapng"
    writer = recording(path, size=1 << 20)
    frames = [memoryview(bytes((n,)) * 60_000) for n in range(4)]
    for name in "eth0", "alice", "bob", "alice":
        writer.write_as(name, frames, 1, 2.0)
    for _ in range(10):
        writer.write_as("bob", frames, 2, 3.0)
    writer.close()
    found = [records(str(one)) for one in sorted(tmp_path.iterdir(), key=lambda one: (len(one.name), one))]
    assert len(found) > 2
    names = [about.ifname for one in found for _, about in one]
    assert names == [b"eth0"] * 4 + [b"alice"] * 4 + [b"bob"] * 4 + [b"alice"] * 4 + [b"bob"] * 40


def test_a_recording_is_written_while_it_runs(tmp_path):
    path = tmp_path / "out"
    inner, far = pair()
    written = recording(path)
    with Record(inner, written, 0) as device, far:
        device.write(Batch.of([plain(1)]))
        until(lambda: ether(1) in path.read_bytes(), "the frame")
        assert [data for data, _ in records(str(path))] == [ether(1)]
        assert device.status() == inner.status()
    written.close()
    with PcapDevice("pcap:x", str(path)) as again:
        assert replay(again) == [ether(1)]


def test_scapy_says_nothing_of_damaged_captures(tmp_path, caplog):
    (tmp_path / "x").write_bytes(b"\x0a\x0d\x0d\x0a" * 9)
    with caplog.at_level(logging.WARNING), pytest.raises(DeviceError):
        with PcapDevice("pcap:x", str(tmp_path / "x")):
            pass
    assert caplog.text == ""


# --- whose a capture is


def test_a_capture_is_its_owners_only_whatever_the_umask(tmp_path):
    old = tmp_path / "old"
    old.write_text("x" * 100_000)
    old.chmod(0o644)
    before = os.umask(0)
    try:
        for path in tmp_path / "new", old:
            recording(path, overwrite=True).close()
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.stat().st_size < 100_000
    finally:
        os.umask(before)


def hostile_directory(tmp_path):
    """A directory where all may write, as /tmp."""
    directory = tmp_path / "all"
    directory.mkdir()
    directory.chmod(0o1777)
    (tmp_path / "precious").write_text("kept")
    return directory


@pytest.mark.parametrize("how", ["symlink", "hard link", "link to nothing"])
def test_a_link_that_another_put_there_is_not_written_through(tmp_path, how):
    path = hostile_directory(tmp_path) / "x.pcap"
    if how == "symlink":
        path.symlink_to(tmp_path / "precious")
    elif how == "hard link":
        path.hardlink_to(tmp_path / "precious")
    else:
        path.symlink_to(tmp_path / "made")
    with pytest.raises(DeviceError, match="name a file that can be written"):
        recording(path)
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "made").exists()


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_file_of_another_user_gets_no_frames(tmp_path, kind):
    path = hostile_directory(tmp_path) / "x.pcap"
    if kind == "file":
        path.write_text("theirs")
    else:
        os.mkfifo(path, 0o666)
    os.chown(path, 60001, 60001)
    with pytest.raises(DeviceError, match="another user's file"):
        recording(path)
    assert kind == "pipe" or path.read_text() == "theirs"


def test_an_own_link_in_an_own_directory_is_followed(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    recording(tmp_path / "link").close()
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600
