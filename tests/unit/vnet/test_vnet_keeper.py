"""The process that starts services: what one can ask of it that has taken vtl-vnet over."""

import json
import select
import sys

import pytest

from lab.wait import PATIENCE_S
from vtl_tools.services.vnet.keeper import ServiceKeeper, parse_service

NOTES = "import sys; open(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + chr(10)); sys.stdin.close()"


@pytest.fixture
def noted(tmp_path):
    return tmp_path / "noted"


@pytest.fixture
def keeper(noted):
    """A keeper of programs that note their command lines and end."""
    keeper = ServiceKeeper(lambda tool: [sys.executable, "-c", NOTES, str(noted), tool], None)
    yield keeper
    keeper.close()


def ended(keeper):
    """Wait until a service has ended, or the keeper; return whether it was the service."""
    seen = []
    keeper.on_change = lambda link, pid, status: seen.append(pid)
    while 0 not in seen:
        poll = select.poll()
        poll.register(keeper, select.POLLIN)
        assert poll.poll(PATIENCE_S * 1000)
        if not keeper.poll(0.0):
            return False
    return True


def test_it_makes_the_command_line_of_a_service(keeper, noted):
    keeper.start("slow", parse_service("service:wan?delay=10ms"))
    assert ended(keeper)
    vm, net, control = keeper.places("slow")
    sides = f"--iface channel:{vm},server --uplink channel:{net},server"
    assert noted.read_text().splitlines()[0] == f"vtl-wan {sides} --delay=10ms --control {control}"


def test_an_option_without_a_value_is_a_flag():
    assert parse_service("service:tor?no-check&socks=127.0.0.1:9050").words == (
        "--no-check", "--socks=127.0.0.1:9050",
    )  # fmt: skip
    assert parse_service("service:fw").words == ()


@pytest.mark.parametrize(
    "asked",
    [
        {"start": "x", "command": ["/bin/sh", "-c", "echo"]},
        {"start": "x", "service": "service:doctor"},
        {"start": "x", "service": "service:wan?log=/etc/passwd"},
        {"start": "x", "service": "service:tor?start-tor"},
        {"start": "x", "service": "service:freeze?qmp=/run/vm.qmp"},
        {"start": "x", "service": "service:freeze?state=/etc/passwd"},
        {"start": "../x", "service": "service:wan"},
        {"start": 1, "service": "service:wan"},
        {},
    ],
)
def test_it_ends_rather_than_start_anything_else(keeper, noted, asked):
    keeper._channel.send(json.dumps(asked).encode())
    assert not ended(keeper)
    assert not noted.exists()
    keeper.close()
    assert not keeper.directory.exists()
