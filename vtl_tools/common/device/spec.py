"""Link specs: the string that names a link (paper section 2.3: an interface is opened by its name).

    NAME                                        an interface of this host
    tap:NAME                                    a tap, created if absent; we use its user side
    qemu:unix:PATH[,server]                     QEMU -netdev stream, passt, gvproxy, libkrun
    qemu:HOST:PORT[,server]
    dgram:unix:PATH,local=PATH                  QEMU -netdev dgram
    dgram:HOST:PORT,local=HOST:PORT
    vxlan:HOST[:PORT]/VNI[,local=ADDR][,port=N][,dev=NAME]
                                                a VXLAN tunnel end point (RFC 7348)
    channel:PATH[,server]                       another VTL process
    pcap:FILE[,write=FILE][,speed=N|realtime]   replay a capture; record sent frames
    libpcap:NAME                                an interface, through libpcap

With `server` a link listens. Without, it connects, and retries until the peer listens. An IPv6 address is
written in brackets: qemu:[::1]:5000. A path cannot contain a comma.
"""

import re
from collections.abc import Callable
from typing import Final, NoReturn

from vtl_tools.common.device.base import Device
from vtl_tools.common.errors import SpecError

_VXLAN_PORT: Final = 4789  # RFC 7348 section 8
_INTERFACE: Final = re.compile(r"[^\s/:]{1,15}")  # dev_valid_name() in Linux
_HOST_PORT: Final = r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d+))?"
_UNIX_MAX: Final = 107  # octets of sun_path, less the final zero


def open_device(spec: str, *, receive: bool = True, mark: int = 0, fanout: int = 0) -> Device:
    """Return the link that spec names, not yet connected: `with open_device("vmnet1") as link: ...`.

    receive, mark, fanout: see PacketDevice. libpcap uses the mark; other links use none of them.
    Raises SpecError for an invalid spec. connect() reports a link that cannot be opened.
    """
    if not spec.isprintable():
        _refuse(spec, "it has unprintable characters", "remove them")
    kind, colon, rest = spec.partition(":")
    if not colon:
        _interface(spec, spec)
        from vtl_tools.common.device.afpacket import PacketDevice

        return PacketDevice(spec, receive=receive, mark=mark, fanout=fanout)
    if kind not in _KINDS:
        kinds = ", ".join(_KINDS)
        _refuse(spec, f"{kind!r} is no kind of link", f"write an interface's name, or one of {kinds}")
    link = _KINDS[kind](spec, rest)
    link.mark = mark
    return link


def _tap(spec: str, rest: str) -> Device:
    from vtl_tools.common.device.tap import TapDevice

    return TapDevice(_interface(spec, rest))


def _libpcap(spec: str, rest: str) -> Device:
    from vtl_tools.common.device.libpcap import LibpcapDevice

    return LibpcapDevice(_interface(spec, rest))


def _qemu(spec: str, rest: str) -> Device:
    address, options = _options(spec, rest, "server")
    where = _address(spec, address, "qemu:unix:PATH or qemu:HOST:PORT")
    server = _flag(spec, options, "server")
    from vtl_tools.common.device.stream import StreamDevice

    return StreamDevice(spec, where, server=server)


def _dgram(spec: str, rest: str) -> Device:
    form = "dgram:unix:PATH,local=PATH or dgram:HOST:PORT,local=HOST:PORT"
    address, options = _options(spec, rest, "local")
    remote = _address(spec, address, form)
    if not options.get("local"):
        _refuse(spec, "a datagram link needs a local address", f"write {form}")
    text = options["local"]
    local = _path(spec, text, form) if isinstance(remote, str) else _address(spec, text, form)
    if isinstance(local, str) and not isinstance(remote, str):
        _refuse(spec, "one end is a path and the other is not", f"write {form}")
    from vtl_tools.common.device.dgram import DgramDevice

    return DgramDevice(spec, remote, local)


def _vxlan(spec: str, rest: str) -> Device:
    form = "vxlan:HOST[:PORT]/VNI[,local=ADDR][,port=N][,dev=NAME]"
    address, options = _options(spec, rest, "local", "port", "dev")
    where, _, vni = address.rpartition("/")
    if not vni.isdecimal() or int(vni) >= 1 << 24:
        _refuse(spec, f"{vni!r} is not a network identifier", f"write {form}, with VNI below 16777216")
    host, port = _host_port(spec, where, form, default=_VXLAN_PORT)
    local_port = _port(spec, options.get("port", str(_VXLAN_PORT)), form)
    from vtl_tools.common.device.vxlan import VxlanDevice

    local = options.get("local", "").strip("[]")
    dev = _interface(spec, options["dev"]) if "dev" in options else ""
    return VxlanDevice(spec, (host, port), int(vni), local=local, port=local_port, dev=dev)


def _channel(spec: str, rest: str) -> Device:
    path, options = _options(spec, rest, "server")
    _path(spec, path, "channel:PATH[,server]")
    server = _flag(spec, options, "server")
    from vtl_tools.common.device.channel import ChannelDevice

    return ChannelDevice(spec, path, server=server)


def _pcap(spec: str, rest: str) -> Device:
    form = "pcap:FILE[,write=FILE][,speed=N|realtime]"
    path, options = _options(spec, rest, "write", "speed")
    if not path:
        _refuse(spec, "the name of the capture file is missing", f"write {form}")
    text = options.get("speed", "0")
    try:
        speed = 1.0 if text == "realtime" else float(text)
    except ValueError:
        speed = -1.0
    if not 0 <= speed < float("inf"):
        _refuse(spec, f"{text!r} is not a speed", "write realtime, or how many times faster to replay")
    from vtl_tools.common.device.pcap import PcapDevice

    return PcapDevice(spec, path, write=options.get("write", ""), speed=speed)


_KINDS: Final[dict[str, Callable[[str, str], Device]]] = {
    "tap": _tap,
    "qemu": _qemu,
    "dgram": _dgram,
    "vxlan": _vxlan,
    "channel": _channel,
    "pcap": _pcap,
    "libpcap": _libpcap,
}


def _refuse(spec: str, problem: str, remedy: str) -> NoReturn:
    raise SpecError(f"{spec!r}: {problem}; {remedy} (vtl-tools(7))")


def _options(spec: str, rest: str, *known: str) -> tuple[str, dict[str, str]]:
    """Split off the options after commas: words, and NAME=VALUE."""
    head, *words = rest.split(",")
    options: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            _refuse(spec, f"{name!r} is no option of this link", f"known: {', '.join(known)}")
        if name in options:
            _refuse(spec, f"{name!r} is given twice", "leave one out")
        options[name] = value
    return head, options


def _flag(spec: str, options: dict[str, str], name: str) -> bool:
    if options.get(name):
        _refuse(spec, f"{name!r} takes no value", f"write ',{name}'")
    return name in options


def _interface(spec: str, name: str) -> str:
    if not _INTERFACE.fullmatch(name) or len(name.encode()) > 15 or name in (".", ".."):
        remedy = "write up to 15 octets without '/', ':' or space"
        _refuse(spec, f"{name!r} is not an interface name", remedy)
    return name


def _address(spec: str, text: str, form: str) -> str | tuple[str, int]:
    if text.startswith("unix:"):
        return _path(spec, text.removeprefix("unix:"), form)
    return _host_port(spec, text, form)


def _path(spec: str, path: str, form: str) -> str:
    if not path:
        _refuse(spec, "a path is missing", f"write {form}")
    if len(path.encode()) > _UNIX_MAX:
        _refuse(spec, f"the path exceeds {_UNIX_MAX} octets", "use a shorter one")
    return path


def _host_port(spec: str, text: str, form: str, default: int = 0) -> tuple[str, int]:
    match = re.fullmatch(_HOST_PORT, text)
    if match is None or (match["port"] is None and not default):
        _refuse(spec, f"{text!r} is not an address", f"write {form}, IPv6 as in [::1]:5000")
    return match["v6"] or match["host"], _port(spec, match["port"] or str(default), form)


def _port(spec: str, text: str, form: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        _refuse(spec, f"{text!r} is not a port", f"write {form}, with a port from 1 to 65535")
    return int(text)
