"""A real guest under vtl-fw and vtl-freeze at once is stopped, and moved; its connections go on.

The firewall of the other host has never heard of the guest. The rules of both hosts reset what is in no
connection that they know.
"""

import pytest

from lab.netns import Lab
from lab.wait import until
from tests.vm.moving import GUEST, GUEST6, MAC, PEER, PEER6, Work, World

pytestmark = [pytest.mark.vm]

RULES = f"""
allow out udp port 67
allow in udp from {PEER} source port 67 port 68
allow out tcp to {PEER}, {PEER6} port 7, 22, 80
reject
"""


@pytest.fixture(scope="module")
def world():
    with Lab() as lab:
        yield World(lab, rules=RULES)


LATE = "tcp-old-timestamp"
"""An answer that vtl-freeze had begun when the guest's own first segment overtook it: what PAWS is for."""


def refused(side):
    """Return what a firewall took for a stranger's of the segments of the guest and its peer."""
    drops = side.firewall()["drops"]
    return {why: n for why, n in drops.items() if why.startswith(("tcp-", "spoofed-")) and why != LATE}


def test_moved_while_stopped_to_a_firewall_that_has_never_heard_of_it(world):
    world.await_guest()
    with world.here.vtl_freeze() as before, world.there.vtl_freeze() as after, Work(world) as work:
        world.guest.qmp("stop")
        until(lambda: before.status()["frozen"], "the service to answer for the guest")
        world.outlast()
        assert before.status()["answered"] > 3
        world.migrate()
        identity = after.firewall()["identity"]
        assert identity["mac"] == MAC
        assert {GUEST, GUEST6} < set(identity["addresses"])
        assert f"{MAC} dev {after.name} " in world.lan.run("bridge", "fdb").stdout
        world.outlast()
        assert after.status()["answered"] > 3
        world.guest.qmp("cont")
        work.goes_on()
        assert not refused(before)
        assert not refused(after)


def test_moved_back_while_running(world):
    world.await_guest()
    with world.here.vtl_freeze(), world.there.vtl_freeze() as after, Work(world) as work:
        world.migrate()
        assert not after.status()["frozen"]
        work.goes_on()
        assert not refused(after)
