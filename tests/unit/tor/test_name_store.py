"""A guest's cached address leads to the name that it was given for, or nowhere, whatever became of us."""

import os
from ipaddress import IPv4Network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed, VTLError
from vtl_tools.common.guest_net.dns import GRACE_S, MAP4, NAMES_MAX, TTL_S
from vtl_tools.common.guest_net.name_map import MappedName, NameMap
from vtl_tools.services.tor import name_store
from vtl_tools.services.tor.name_store import NameStore, parse, record

KEPT_S = TTL_S + GRACE_S
SMALL = IPv4Network("192.0.2.0/26")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vtl-tor.names"


class Service:
    """One run of a service: its names, and the file that they are kept in. range_: of 62 addresses."""

    def __init__(self, path, now=0.0, names_max=20, range_=SMALL):
        self.store = NameStore(path)
        self.names = NameMap(
            range_, None, names_max=names_max, keep_s=KEPT_S, key=self.store.secret, keep=self.store.put
        )
        self.names.restore(self.store.names, now)

    def kill(self):
        self.store.close()


def test_the_address_of_another_site_by_names_that_collide(path):
    """Without the key, who knows the hash finds two names for one address in no time."""
    other = path.with_name("other")
    keys = [NameStore(path).secret, NameStore(other).secret]
    assert keys[0] != keys[1]
    names = [f"{number}.example.com" for number in range(100)]
    found = []
    for key in keys:
        table = NameMap(MAP4, None, names_max=NAMES_MAX, keep_s=KEPT_S, key=key)
        found.append([table.address_of(name, 0.0) for name in names])
    assert sum(a == b for a, b in zip(*found, strict=True)) < 10


def test_the_address_of_another_site_by_a_restart(path):
    service = Service(path)
    had = {name: service.names.address_of(name, 0.0) for name in ("bank.example", "shop.example", "a.onion")}
    service.kill()
    service = Service(path)
    for number in range(17):  # as many as there is room for
        assert service.names.address_of(f"{number}.evil.example", 1.0) is not None
    assert service.names.address_of("one-more.evil.example", KEPT_S - 1) is None
    assert [service.names.name_of(address) for address in had.values()] == list(had)
    assert {name: service.names.address_of(name, 2.0) for name in had} == had


@pytest.mark.parametrize("seed", range(20))
def test_the_address_of_another_site_by_any_history(path, seed):
    """While an answer may be cached its address leads to its name, or nowhere; with kills at any moment."""
    rng, now, service = Random(seed), 0.0, Service(path)
    cached = {}
    for _ in range(600):
        now += rng.choice((0, 0, 1, 20, 100))
        if rng.random() < 0.1:
            service.kill()
            service = Service(path, now)
        name = f"{rng.randrange(60)}.example"
        if (address := service.names.address_of(name, now)) is not None:
            for other, (had, until) in cached.items():
                assert had != address or other == name or until <= now
            cached[name] = address, now + KEPT_S
        for other, (had, until) in cached.items():
            if until > now:
                assert service.names.name_of(had) == other


def test_the_address_of_another_site_by_names_that_come_and_go(path):
    """An address that lost its name leads nowhere for long after: programs keep addresses too long."""
    service, now, had = Service(path, names_max=10), 0.0, []
    for number in range(300):
        now += KEPT_S + 1
        address = service.names.address_of(f"{number}.example", now)
        assert address is not None
        assert address not in had[-30:]
        had.append(address)
        assert [service.names.name_of(each) for each in had[-30:-10]] == [None] * len(had[-30:-10])
    assert len(service.names) == 10


def test_a_name_that_is_put_is_there_without_any_end_in_order(path):
    service = Service(path)
    address = service.names.address_of("www.example.com", 0.0)
    _, names = parse(path.read_bytes())
    assert [each.name for each in names] == ["www.example.com"]
    service.kill()
    assert Service(path).names.name_of(address) == "www.example.com"


def test_the_file_is_as_large_as_the_table(path):
    service = Service(path, names_max=10)
    for number in range(500):
        service.names.address_of(f"{number}.example", number * 1000.0)
    assert path.stat().st_size == 64 + 10 * 264
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_that_was_half_written_is_left_out_and_its_place_used_again(path):
    service = Service(path)
    addresses = [service.names.address_of(f"{number}.example", 0.0) for number in range(3)]
    service.kill()
    octets = bytearray(path.read_bytes())
    octets[64 + 264 + 20] ^= 1
    path.write_bytes(octets)
    service = Service(path)
    assert [service.names.name_of(each) for each in addresses] == ["0.example", None, "2.example"]
    for number in range(10, 14):
        service.names.address_of(f"{number}.example", 0.0)
    service.kill()
    assert len(Service(path).names) == 6


def test_a_damaged_file_is_begun_anew_and_told_of(path, caplog):
    path.write_bytes(b"#!/bin/sh\n" * 100)
    path.chmod(0o600)
    assert Service(path).names.address_of("www.example.com", 0.0)
    assert "damaged" in caplog.text


def test_a_file_that_others_may_have_written_is_refused(path, tmp_path):
    NameStore(path).close()
    path.chmod(0o660)
    with pytest.raises(VTLError, match="not a file of our own"):
        NameStore(path)
    path.chmod(0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(VTLError, match="not a file of our own"):
        NameStore(path)
    os.chown(path, 0, 0)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(VTLError):
        NameStore(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(VTLError):
        NameStore(tmp_path / "fifo")


def test_a_file_of_the_user_that_the_directory_is_of_is_taken_by_root(path, tmp_path):
    """A service gives root up, and what it is then has its directory."""
    store = NameStore(path)
    store.close()
    os.chown(tmp_path, 12345, 12345)
    os.chown(path, 12345, 12345)
    assert NameStore(path).secret == store.secret


def test_two_processes_do_not_share_a_file(path):
    store = NameStore(path)
    with pytest.raises(VTLError, match="already runs there"):
        NameStore(path)
    store.close()
    NameStore(path).close()


def test_a_full_disk_is_told_of_once_and_no_end(path, monkeypatch, caplog):
    service = Service(path)
    monkeypatch.setattr(name_store.os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    for number in range(5):
        assert service.names.address_of(f"{number}.example", 0.0)
    assert len(caplog.messages) == 1


def test_a_full_file_is_read_as_it_was_written(path):
    names = [MappedName(row, 130_000 - row, f"{row}.example.com") for row in range(NAMES_MAX)]
    store = NameStore(path)
    for each in names:
        store.put(each)
    store.close()
    store = NameStore(path)
    assert store.names == names
    table = NameMap(MAP4, None, names_max=NAMES_MAX, keep_s=KEPT_S, key=store.secret)
    table.restore(store.names, 0.0)
    assert len(table) == NAMES_MAX


@given(st.binary(max_size=900))
def test_any_file_is_read_or_malformed(data):
    for octets in data, name_store._HEADER.pack(name_store._MAGIC, b"s" * 32) + data:
        try:
            _, names = parse(octets)
        except Malformed:
            continue
        NameMap(SMALL, None, names_max=3, keep_s=1.0).restore(names, 0.0)


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70), st.sampled_from("abcdef")), max_size=40))
def test_any_names_at_all_are_restored_to_a_table_that_holds(found):
    names = NameMap(SMALL, None, names_max=20, keep_s=1.0)
    placed = [MappedName(*each) for each in found]
    head = name_store._HEADER.pack(name_store._MAGIC, b"s" * 32)
    assert parse(head + b"".join(map(record, placed)))[1] == [
        each._replace(row=row) for row, each in enumerate(placed)
    ]
    names.restore(placed, 0.0)
    kept = []
    names._keep = kept.append
    now = 0.0
    for number in range(40):
        now += 2.0
        assert names.address_of(f"{number}.new", now) is not None
        rows = [entry.row for entry in names._by_name.values()]
        assert len(rows) == len(set(rows)) <= 20
        assert max(rows) < 20
    assert len(kept) == 40
