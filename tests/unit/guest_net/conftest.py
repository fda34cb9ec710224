"""A guest that speaks to its network: it says this, and hears that."""

import pytest

from tests.unit.guest_net.guest import Guest
from vtl_tools.common.guest_net.addresses import GuestAddresses


@pytest.fixture
def network() -> GuestAddresses:
    return GuestAddresses()


@pytest.fixture
def guest(network: GuestAddresses) -> Guest:
    return Guest(network)
