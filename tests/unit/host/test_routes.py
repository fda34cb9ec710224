"""The interfaces that send by another one, so that a guard of that one would cut them off."""

from vtl_tools.common.host.routes import LinkEntry, above

CARD = LinkEntry(2, "eth0", master=4, is_card=True)
TAP = LinkEntry(3, "vnet0", "tun", master=4)
BRIDGE = LinkEntry(4, "br0", "bridge")
VLAN = LinkEntry(5, "br0.7", "vlan", below=4)
PAIR = [LinkEntry(6, "veth0", "veth", below=7), LinkEntry(7, "veth1", "veth", below=6)]
BOND = [
    LinkEntry(8, "eth1", master=9),
    LinkEntry(9, "bond0", "bond"),
    LinkEntry(10, "bond0.3", "vlan", below=9),
]
LINKS = [CARD, TAP, BRIDGE, VLAN, *PAIR, *BOND]


def test_the_bridge_of_a_card_and_its_vlans_depend_on_the_card():
    assert set(above(LINKS, "eth0").values()) == {"eth0", "br0", "br0.7"}


def test_a_bridge_does_not_depend_on_the_port_of_a_vm():
    assert set(above(LINKS, "vnet0").values()) == {"vnet0"}


def test_a_bond_depends_on_its_members_and_a_veth_not_on_its_peer():
    assert set(above(LINKS, "eth1").values()) == {"eth1", "bond0", "bond0.3"}
    assert set(above(LINKS, "veth0").values()) == {"veth0"}
    assert above(LINKS, "nope0") == {}
