"""The way that packets take, in memory: found, tried in both directions, used, lost, won back."""


def test_two_vms_that_talk_soon_do_it_by_the_lan(world):
    one, other = world
    ways = world.chat(3.0)
    for way in ways:
        assert way.strip("l").strip("s") == ""  # first the long way, then the short one
        assert way.startswith("l")
        assert way.endswith("s" * 30)
    assert one.state(other) == other.state(one) == "up"
