"""Addresses as text and as octets."""

import pytest

from vtl_tools.common.packet import address


def test_text_and_octets_are_each_other():
    assert address.format_mac(address.mac("02:00:5E:00:00:ff")) == "02:00:5e:00:00:ff"
    for text in ("10.0.0.1", "2001:db8::1"):
        assert address.format_ip(address.ip(text)) == text


@pytest.mark.parametrize(
    "text", ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "g2:00:00:00:00:00", "020:0:0:0:0:0"]
)
def test_what_is_no_ethernet_address_is_refused(text):
    with pytest.raises(ValueError):
        address.mac(text)


def test_addresses_tell_what_they_are():
    assert address.is_multicast(address.ip("224.0.0.1"))
    assert address.is_multicast(address.ip("ff02::1"))
    assert address.ip("ff02::1") == address.ALL_NODES
    assert address.ip("ff02::2") == address.ALL_ROUTERS
    assert address.is_link_local(address.ip("fe80::1"))
    assert address.is_link_local(address.ip("169.254.1.1"))
    assert address.is_broadcast(address.ip("255.255.255.255"))
    for text in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"):
        assert not address.is_single_host(address.ip(text))
    for text in ("10.0.0.1", "2001:db8::1"):
        assert address.is_single_host(address.ip(text))


def test_addresses_are_made_of_others():
    host = address.ip("2001:db8::12:3456")
    assert address.format_ip(address.solicited_node(host)) == "ff02::1:ff12:3456"
    assert address.is_solicited_node(address.solicited_node(host))
    assert address.format_mac(address.multicast_mac(address.solicited_node(host))) == "33:33:ff:12:34:56"
    assert address.format_mac(address.multicast_mac(address.ip("224.129.2.3"))) == "01:00:5e:01:02:03"
    assert (
        address.format_ip(address.link_local(address.mac("52:54:00:12:34:56"))) == "fe80::5054:ff:fe12:3456"
    )


@pytest.mark.parametrize(
    ("text", "is_internal"),
    [
        ("10.0.0.1", True), ("172.16.0.1", True), ("172.32.0.1", False), ("192.168.3.4", True),
        ("192.169.0.1", False), ("100.64.0.1", True), ("100.128.0.1", False), ("127.0.0.1", True),
        ("169.254.169.254", True), ("0.1.2.3", True), ("203.0.113.80", False), ("9.9.9.9", False),
        ("::1", True), ("fe80::1", True), ("fec0::1", True), ("fd00::1", True), ("::ffff:9.9.9.9", True),
        ("::9.9.9.9", True), ("2001:db8::1", False), ("2620:fe::9", False), ("ff02::1", True),
        ("198.18.0.1", True), ("198.20.0.1", False), ("192.0.0.9", True), ("192.88.99.1", True),
        ("192.0.1.1", False), ("240.0.0.1", True), ("255.255.255.255", True), ("224.0.0.1", True),
        ("64:ff9b::7f00:1", True), ("64:ff9b::10.0.0.1", True), ("64:ff9b::9.9.9.9", False),
        ("64:ff9b:1::9.9.9.9", True), ("64:ff9b::1:0:0", True), ("2002:7f00:1::", True),
        ("2002:0a00:1::1", True), ("2002:909:909::1", False), ("2001::1", True),
        ("2001:0:909:909::f5f5:fefe", True), ("2001:1ff::1", True), ("2001:200::1", False),
        ("2001:db9::1", False), ("2003::1", False), ("100::1", True), ("5f00::1", True), ("4000::1", True),
        ("::", True),
    ],
)  # fmt: skip
def test_internal_addresses_are_those_that_the_world_does_not_reach(text: str, is_internal: bool) -> None:
    assert address.is_internal(address.ip(text)) is is_internal
