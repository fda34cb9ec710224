"""Conversations with a Freezer: a VM and its peers by their segments, on a manual clock."""

from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.freeze.freezer import Freezer

VM_MAC, PEER_MAC = address.mac("52:54:00:00:00:01"), address.mac("52:54:00:00:00:02")
HOSTS = {4: ("10.0.0.5", "192.0.2.1"), 6: ("2001:db8::5", "2001:db8:1::1")}
FLAGS = {"F": tcp.FIN, "S": tcp.SYN, "R": tcp.RST, "P": tcp.PSH, ".": tcp.ACK}
VM_ISS, PEER_ISS = 2**32 - 100, 2**32 - 5000  # they wrap around soon


class Talk:
    """A connection of port 80 of the VM. Numbers are relative to the ISS; stamps: (TSval, TSecr) or None."""

    def __init__(self, version=4, stamps=True, vlan=None):
        self.freezer, self.now = Freezer(), 1000.0
        self.vm_host, self.peer_host = (address.ip(text) for text in HOSTS[version])
        self.stamps, self.vlan, self.port = stamps, vlan, 40_000
        self.window = 500

    def _frame(self, from_vm, flags, seq, ack, length, stamps, window, **more):
        here, there = (self.vm_host, self.peer_host) if from_vm else (self.peer_host, self.vm_host)
        macs = (VM_MAC, PEER_MAC) if from_vm else (PEER_MAC, VM_MAC)
        ports = (80, self.port) if from_vm else (self.port, 80)
        iss = (VM_ISS, PEER_ISS) if from_vm else (PEER_ISS, VM_ISS)
        options = tcp.encode_options(
            window_scale=more.pop("scale", 7) if "S" in flags else None,
            timestamps=stamps if self.stamps else None,
        )
        fields = {"src_mac": macs[0], "dst_mac": macs[1], "src": here, "dst": there} | more
        return build.tcp(
            **fields, sport=ports[0], dport=ports[1], seq=(iss[0] + seq) % 2**32,
            ack=(iss[1] + ack) % 2**32 if "." in flags else 0, flags=sum(FLAGS[one] for one in flags),
            window=self.window if window is None else window, options=options, payload=bytes(length),
            vlan=self.vlan,
        )  # fmt: skip

    def vm(self, flags, seq, ack=0, length=0, *, stamps=(1000, 5000), window=None, **more):
        """The VM sends: it is overheard, or noticed where it is to be away."""
        frame = self._frame(True, flags, seq, ack, length, stamps, window, **more)
        if self.freezer.frozen:
            self.freezer.from_vm(memoryview(frame), self.now)
        else:
            self.freezer.overhear(memoryview(frame)[:152], True, self.now)
        return self.said()

    def peer(self, flags, seq, ack=0, length=0, *, stamps=(5000, 1000), window=None, **more):
        """The peer sends; what is said to the network, each as (flags, seq, ack, window, stamps)."""
        frame = self._frame(False, flags, seq, ack, length, stamps, window, **more)
        return self.whole(frame)

    def whole(self, frame):
        if self.freezer.frozen:
            self.freezer.from_peer(memoryview(frame), self.now)
        else:
            self.freezer.overhear(memoryview(frame)[:152], False, self.now)
        return self.said()

    def said(self):
        to_network, self.delivered = self.freezer.take()
        return [self.brief(bytearray(frame)) for frame in to_network]

    def brief(self, frame):
        pkt = Packet.at(frame)
        net, segment = pkt.ip, pkt.tcp
        assert pkt.verify()
        assert (pkt.eth.src, pkt.eth.dst, net.src, net.dst) == (
            VM_MAC, PEER_MAC, self.vm_host, self.peer_host
        )  # fmt: skip
        assert (segment.sport, segment.dport) == (80, self.port)
        assert [tag.vid for tag in pkt.vlans] == ([] if self.vlan is None else [self.vlan])
        assert not segment.payload
        letters = "".join(letter for letter, bit in FLAGS.items() if segment.flags & bit)
        numbers = (segment.seq - VM_ISS) % 2**32, (segment.ack - PEER_ISS) % 2**32
        return letters, *numbers, segment.window, segment.timestamps

    def open(self):
        """The peer opens; 1000 octets go to the VM, which acknowledges them, and 200 back."""
        self.peer("S", 0)
        self.vm("S.", 0, 1, window=65_535)
        self.peer(".", 1, 1)
        self.peer("P.", 1, 1, 1000)
        self.vm("P.", 1, 1001, 200)
        self.peer(".", 1001, 201)
        return self

    def freeze(self):
        assert self.freezer.start(self.now)
        return self

    def thaw(self):
        assert self.freezer.stop(self.now)
        while self.freezer.thaw():
            pass
        return self.said()

    @property
    def connection(self):
        (one,) = self.freezer.table
        return one
