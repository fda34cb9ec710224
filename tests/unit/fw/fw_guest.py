"""Frames of DHCP and neighbour discovery between a guest and its network."""

from fw import PEER, PEER_MAC, VM, VM_MAC

from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.guest_net.dhcp_wire import DHCPMessage
from vtl_tools.common.packet import address, build, nd, tcp

LOCAL6, ROUTER = address.link_local(VM_MAC), address.link_local(PEER_MAC)
NOBODY, UNSPECIFIED = address.ip("10.0.0.9"), bytes(16)
SERVER, OTHER_SERVER, EVERYBODY = address.ip("10.0.0.1"), address.ip("10.0.0.2"), b"\xff" * 4
L2 = {"src_mac": VM_MAC, "dst_mac": PEER_MAC}
TO_VM = {"src_mac": PEER_MAC, "dst_mac": VM_MAC}


def segment(src, dst=PEER, **more):
    return build.tcp(**{**L2, **more}, src=src, dst=dst, sport=1, dport=80, seq=1, flags=tcp.SYN)


def datagram(src, sport, dport, payload=b"x", dst=PEER, **more):
    return build.udp(**{**L2, **more}, src=src, dst=dst, sport=sport, dport=dport, payload=payload)


def neighbour(kind, src, target, lladdr=VM_MAC, option=nd.SOURCE_LLADDR, mac=VM_MAC, dst=address.ALL_NODES):
    options = b"" if lladdr is None else build.nd_option(option, lladdr)
    body = bytes(4) + target
    return build.nd_message(
        src_mac=mac, dst_mac=PEER_MAC, src=src, dst=dst, kind=kind, body=body, options=options
    )


def solicit(target, mac=VM_MAC):
    """Duplicate address detection."""
    return neighbour(nd.NEIGHBOR_SOLICIT, UNSPECIFIED, target, None, mac=mac)


def advert(target, mac=VM_MAC, src=None):
    return neighbour(nd.NEIGHBOR_ADVERT, src or target, target, mac, nd.TARGET_LLADDR, mac)


def announced(prefix="2001:db8::", bits=64, flags=0xC0, valid=600, src=ROUTER, mac=PEER_MAC):
    """A router's advertisement of a prefix."""
    numbers = bytes((bits, flags)) + valid.to_bytes(4, "big") + bytes(8)
    option = build.nd_option(nd.PREFIX_INFORMATION, numbers + address.ip(prefix))
    body = bytes(12)
    return build.nd_message(
        src_mac=mac, dst_mac=VM_MAC, src=src, dst=address.ALL_NODES, kind=nd.ROUTER_ADVERT, body=body,
        options=option,
    )  # fmt: skip


def dhcp(kind, chaddr=VM_MAC, src=bytes(4), ciaddr=bytes(4), dst=EVERYBODY, xid=7, change=None, **options):
    """A message of the VM. options: as _61=b"...". change: edits the payload."""
    told = {53: bytes((kind,))} | {int(name[1:]): data for name, data in options.items()}
    message = DHCPMessage(dhcp_wire.BOOTREQUEST, xid, chaddr, ciaddr=ciaddr, options=told)
    payload = bytearray(message.encode())
    if change is not None:
        change(payload)
    return datagram(src, 68, 67, bytes(payload), dst=dst)


def ack(leased=VM, chaddr=VM_MAC, seconds=600, kind=dhcp_wire.ACK, src=SERVER, dst=EVERYBODY, xid=7,
        server=SERVER, sport=67):  # fmt: skip
    options = {53: bytes((kind,)), 51: seconds.to_bytes(4, "big")}
    if server is not None:
        options[54] = server
    message = DHCPMessage(dhcp_wire.BOOTREPLY, xid, chaddr, yiaddr=leased, options=options)
    return datagram(src, sport, 68, message.encode(), dst=dst, **TO_VM)


def lease(vm, now=0.0, **answer):
    """Let a VM ask for an address, and be answered."""
    assert vm.refuse(dhcp(dhcp_wire.REQUEST), now) == ""
    vm.observe(ack(**answer), now)


def claims(vm, octets, now=0.0):
    """Let a VM claim an IPv6 address, to which nobody objects; say whether it has it then."""
    asked = vm.refuse(solicit(octets), now) == ""
    settle(vm, now)
    owns = vm.refuse(segment(octets, address.ip("2001:db8:1::1")), now) == ""
    assert owns <= asked
    return owns


def settle(vm, now, seconds=1.0):
    """Let time pass; return the frames that were sent meanwhile, each with its port."""
    sent = vm.transmit()
    end = now + seconds
    while (due := vm.deadline()) is not None and due <= end:
        vm.wake(max(now, due))
        sent += vm.transmit()
    return sent
