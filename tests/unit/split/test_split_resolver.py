"""The DNS servers and the search list of a resolv.conf."""

from pathlib import Path

import pytest

from vtl_tools.common.guest_net.search_list import SEARCH_OCTETS_MAX, domain, encode_names, shortened
from vtl_tools.services.split.resolver import HostResolver


def test_the_servers_of_the_host_in_their_order_each_once(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "nameserver 192.0.2.53\n# nameserver 192.0.2.1\nnameserver 2001:db8::53\nnameserver 192.0.2.53\n"
        "nameserver nonsense\nnameserver\nnameserver 192.0.2.54\nnameserver 192.0.2.55\n"
        "domain old.example\nsearch lab.example. example.org -bad- .\n"
    )
    resolver = HostResolver(path=path)
    assert resolver.count == 3
    assert [resolver(number) for number in range(3)] == [
        ("192.0.2.53", 53), ("2001:db8::53", 53, 0, 0), ("192.0.2.54", 53)
    ]  # fmt: skip
    assert resolver.search == ["lab.example", "example.org"]
    path.write_text("nameserver 192.0.2.9\n")
    assert (resolver(0), resolver(1)) == (("192.0.2.9", 53), None)
    path.unlink()
    assert resolver(0) == ("192.0.2.9", 53)


def test_servers_that_are_given_count_instead(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\nsearch lab.example\n")
    resolver = HostResolver(["192.0.2.1"], path)
    assert (resolver.count, resolver(0), resolver(1)) == (1, ("192.0.2.1", 53), None)
    assert resolver.search == ["lab.example"]


@pytest.mark.parametrize(
    "text", ["", ".", "a..b", "-a", "a b", "a" * 64, ".".join(["a" * 63] * 4), "é.example"]
)
def test_what_is_no_domain(text: str) -> None:
    with pytest.raises(ValueError, match="is no domain"):
        domain(text)


def test_a_long_list_is_cut_between_domains() -> None:
    domains = [f"{number}.{'x' * 50}.example" for number in range(9)]
    kept = shortened(domains)
    assert kept == tuple(domains[: len(kept)])
    assert 0 < len(kept) < len(domains)
    assert len(encode_names(kept)) <= SEARCH_OCTETS_MAX < len(encode_names(domains[: len(kept) + 1]))
