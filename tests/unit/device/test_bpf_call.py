"""bpf(2)."""

import ctypes
import errno
from types import SimpleNamespace

import pytest

from vtl_tools.common.device import bpf


def test_a_signal_during_the_kernels_check_of_a_program_is_no_failure(monkeypatch):
    answers = [-1, -1, 7]

    def syscall(*_):
        ctypes.set_errno(errno.EAGAIN)
        return answers.pop(0)

    monkeypatch.setattr(bpf, "_libc", SimpleNamespace(syscall=syscall))
    assert bpf.bpf(5, ctypes.create_string_buffer(8)) == 7
    answers += [-1] * 100
    with pytest.raises(BlockingIOError):
        bpf.bpf(5, ctypes.create_string_buffer(8))
