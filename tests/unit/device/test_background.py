"""Batches that a thread sends, and when it is not asked to."""

import errno
import os
import socket
import threading
from itertools import count

import pytest

from vtl_tools.common.device import background
from vtl_tools.common.device.background import BackgroundSender
from vtl_tools.common.device.batch import PackedBatch


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def test_batches_leave_whole_and_in_order(pair):
    ours, theirs = pair
    sender, batch = BackgroundSender(), PackedBatch()
    for round_ in range(3):
        frames = [bytes((round_, i)) * (i + 1) for i in range(8)]
        assert sender.pays(8)
        sender.start(ours.fileno(), batch.pack([(frame,) for frame in frames]))
        assert sender.batch is batch
        assert [theirs.recv(100) for _ in frames] == frames
        assert sender.finish()[0] == 8
        assert sender.batch is None


def test_the_error_of_a_batch_is_told_once_it_is_finished(pair):
    ours, theirs = pair
    theirs.close()
    sender = BackgroundSender()
    assert sender.pays(8)
    sender.start(ours.fileno(), PackedBatch().pack([(b"a",)] * 8))
    assert sender.finish() == (-1, errno.ECONNREFUSED)


def test_few_frames_or_one_processor_are_not_worth_a_thread(monkeypatch):
    sender = BackgroundSender()
    assert [sender.pays(n) for n in (1, 7, 8, 64)] == [False, False, True, True]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert not sender.pays(64)


def test_batches_after_one_that_was_late_leave_in_the_foreground(monkeypatch, pair):
    sender, sent, clock = BackgroundSender(), threading.Event(), count()

    def monotonic():  # read when finish() has to wait
        sent.set()
        return float(next(clock))

    monkeypatch.setattr(background.mmsg, "sendmmsg", lambda *_: sent.wait() and 8)
    monkeypatch.setattr(background.time, "monotonic", monotonic)
    assert sender.pays(8)
    sender.start(pair[0].fileno(), PackedBatch().pack([(b"a",)] * 8))
    assert sender.finish()[0] == 8
    direct = 0
    while not sender.pays(8):
        direct += 1
    assert direct == background._SPARED


def test_without_a_thread_batches_leave_in_the_foreground(monkeypatch):
    def refused(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    sender = BackgroundSender()
    assert not sender.pays(64)
    assert sender.batch is None
