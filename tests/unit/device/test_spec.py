"""How links are named: what each spec makes, and that nonsense is refused in one line."""

import subprocess
import sys

import pytest

from vtl_tools.common.device.spec import open_device
from vtl_tools.common.errors import SpecError


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("vmnet1", "PacketDevice"),
        ("eth0.100", "PacketDevice"),
        ("tap:vtl0", "TapDevice"),
        ("qemu:unix:/run/vm.sock", "StreamDevice"),
        ("qemu:unix:relative,server", "StreamDevice"),
        ("qemu:localhost:5000", "StreamDevice"),
        ("qemu:[::1]:5000,server", "StreamDevice"),
        ("dgram:127.0.0.1:5000,local=127.0.0.1:5001", "DgramDevice"),
        ("dgram:unix:/run/a,local=/run/b", "DgramDevice"),
        ("vxlan:10.0.0.1/7", "VxlanDevice"),
        ("vxlan:10.0.0.1:8472/16777215,local=10.0.0.2,port=8472", "VxlanDevice"),
        ("vxlan:[fd00::1]/0,local=[fd00::2]", "VxlanDevice"),
        ("vxlan:10.0.0.1/7,dev=eth0", "VxlanDevice"),
        ("channel:/run/vtl/a.sock", "ChannelDevice"),
        ("channel:/run/vtl/a.sock,server", "ChannelDevice"),
        ("pcap:in.pcap", "PcapDevice"),
        ("pcap:in.pcap,write=out.pcapng,speed=2.5", "PcapDevice"),
        ("pcap:in.pcap,speed=realtime", "PcapDevice"),
        ("libpcap:eth0", "LibpcapDevice"),
    ],
)
def test_a_spec_names_a_link(spec, kind):
    device = open_device(spec)
    try:
        assert type(device).__name__ == kind
        assert device.spec == spec
        assert not device.up
    finally:
        device.close()


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "'' is not an interface name"),
        ("sixteen-octets-x", "is not an interface name"),
        ("a/b", "is not an interface name"),
        ("a b", "is not an interface name"),
        ("..", "is not an interface name"),
        ("eth0\n", "it has unprintable characters"),
        ("eth\0", "it has unprintable characters"),
        ("vlan:eth0", "'vlan' is no kind of link"),
        (":eth0", "'' is no kind of link"),
        ("tap:", "is not an interface name"),
        ("libpcap:", "is not an interface name"),
        ("qemu:", "'' is not an address"),
        ("qemu:unix:", "a path is missing"),
        ("qemu:unix:" + "x" * 108, "the path exceeds 107 octets"),
        ("qemu:localhost", "'localhost' is not an address"),
        ("qemu:localhost:0", "'0' is not a port"),
        ("qemu:localhost:65536", "'65536' is not a port"),
        ("qemu:::1:5000", "'::1:5000' is not an address"),
        ("qemu:localhost:5000,server=yes", "'server' takes no value"),
        ("qemu:localhost:5000,client", "'client' is no option of this link"),
        ("qemu:localhost:5000,server,server", "'server' is given twice"),
        ("dgram:localhost:5000", "a datagram link needs a local address"),
        ("dgram:localhost:5000,local=", "a datagram link needs a local address"),
        ("dgram:localhost:5000,local=/run/a", "'/run/a' is not an address"),
        ("dgram:localhost:5000,local=unix:/run/a", "one end is a path and the other is not"),
        ("vxlan:10.0.0.1", "'10.0.0.1' is not a network identifier"),
        ("vxlan:10.0.0.1/16777216", "'16777216' is not a network identifier"),
        ("vxlan:10.0.0.1/-1", "'-1' is not a network identifier"),
        ("vxlan:/7", "'' is not an address"),
        ("vxlan:10.0.0.1/7,port=x", "'x' is not a port"),
        ("vxlan:10.0.0.1/7,dev=a/b", "'a/b' is not"),
        ("channel:", "a path is missing"),
        ("pcap:", "the name of the capture file is missing"),
        ("pcap:a,speed=fast", "'fast' is not a speed"),
        ("pcap:a,speed=-1", "'-1' is not a speed"),
        ("pcap:a,speed=nan", "'nan' is not a speed"),
        ("pcap:a,speed=inf", "'inf' is not a speed"),
    ],
)
def test_nonsense_is_refused_in_one_line(spec, problem):
    with pytest.raises(SpecError) as caught:
        open_device(spec)
    message = str(caught.value)
    assert message.startswith(f"{spec!r}: ")
    assert problem in message
    assert "; " in message
    assert "\n" not in message


def test_no_link_is_imported_before_it_is_named():
    code = (
        "import sys; from vtl_tools.common.device.spec import open_device\n"
        "open_device('channel:/a')\n"
        "print([m for m in sys.modules if m.startswith('scapy') or m.endswith(('.stream', '.afpacket'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
