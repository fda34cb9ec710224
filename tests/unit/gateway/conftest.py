"""A guest that speaks to its network: it says this, and hears that."""

import pytest

from tests.unit.gateway.guest import Guest
from vtl_tools.common.gateway.network import Network


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def guest(network: Network) -> Guest:
    return Guest(network)
