"""Fixtures of the firewall's tests."""

import pytest
from fw import Wire


@pytest.fixture
def wire():
    """A firewall that lets the VM reach ports 80 and 53, echo, and ssh in."""
    return Wire(
        """
        allow out tcp port 80
        allow out udp port 53
        allow out icmp, icmp6 type echo-request
        allow out protocol 47
        allow in tcp port 22
        deny any
        """
    )
