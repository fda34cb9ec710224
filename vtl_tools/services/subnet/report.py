"""The status of vtl-subnet."""

from vtl_tools.common.packet import address
from vtl_tools.services.subnet.peer import PeerState, Shortcut
from vtl_tools.services.subnet.peers import Peers


def report(peers: Peers, now: float, listed_max: int) -> dict[str, object]:
    """Return the VM's addresses, its shortcuts (the most used first), and the traffic that they carried."""
    vm = peers.vm
    shortcuts = sorted(peers.table.shortcuts.values(), key=lambda one: one.spared, reverse=True)
    spared = [
        sum(column) for column in zip(peers.table.spared, *(one.spared for one in shortcuts), strict=True)
    ]
    return {
        "vm": {
            "mac": "" if vm.mac is None else address.format_mac(vm.mac),
            "addresses": [address.format_ip(one) for one in vm.addresses],
        },
        "spared": {
            "frames": spared[0],
            "octets": spared[1],
            "shortcuts_up": sum(one.state is PeerState.UP for one in shortcuts),
            "peers": len(peers.table.peers),
            "conflicts": peers.table.conflicts,
        },
        "traffic": {
            address.format_ip(one.address): {
                "tx_frames": one.tx_frames,
                "tx_octets": one.tx_octets,
                "rx_frames": one.rx_frames,
                "rx_octets": one.rx_octets,
            }
            for one in shortcuts[:listed_max]
        },
        "shortcuts": {address.format_ip(one.address): _shortcut(one, now) for one in shortcuts[:listed_max]},
    }


def _shortcut(one: Shortcut, now: float) -> dict[str, object]:
    peer = one.peer
    return {
        "peer": address.format_mac(peer.mac),
        "found": peer.found.value,
        "state": one.state.value,
        "since_s": round(now - peer.since, 1),
        "rtt_s": round(peer.rtt_s, 6),
        "losses": peer.losses,
    }
