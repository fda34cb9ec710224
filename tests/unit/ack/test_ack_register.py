"""The file of the register: only what this user has written itself is trusted, and changed."""

import os

import pytest

from vtl_tools.common.errors import VTLError
from vtl_tools.services.ack.register import OCTETS, Register, RegisteredConnection
from vtl_tools.services.ack.start import shared_memory

ENTRY = RegisteredConnection(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", bytes(range(1, 13)))


def test_entries_survive_the_process(tmp_path):
    path = tmp_path / "one.flows"
    slot = Register(shared_memory(path)).add(ENTRY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(Register(shared_memory(path)).found()) == [(slot, ENTRY)]


def test_a_file_of_another_size_has_no_entries(tmp_path):
    path = tmp_path / "one.flows"
    path.write_bytes(b"\4" * (OCTETS + 1))
    assert list(Register(shared_memory(path)).found()) == []


def writable(path, kept):
    kept.rename(path)
    path.chmod(0o622)


def owned_by_another(path, kept):
    kept.rename(path)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    "place",
    [
        lambda path, kept: path.symlink_to(kept), lambda path, kept: path.hardlink_to(kept), writable,
        owned_by_another, lambda path, kept: os.mkfifo(path), lambda path, kept: path.mkdir(),
    ],
)  # fmt: skip
def test_a_file_that_others_may_have_made_is_refused_and_stays_as_it_is(tmp_path, place):
    kept = tmp_path / "kept"
    kept.write_bytes(b"important")
    path = tmp_path / "one.flows"
    place(path, kept)
    with pytest.raises(VTLError, match="choose another place with --control"):
        shared_memory(path)
    if kept.exists():
        assert kept.read_bytes() == b"important"


def test_entries_that_make_no_sense_are_freed(tmp_path):
    memory = shared_memory(tmp_path / "one.flows")
    memory[:] = os.urandom(OCTETS)
    register = Register(memory)
    assert all(len(entry.parties) in (12, 36) for _, entry in register.found())
    for slot, _ in list(register.found()):
        register.free(slot)
    assert len(register) == 0
