"""The specs of services that are links: service:NAME?option=value&flag."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from vtl_tools.common.errors import SpecError

SIDES: Final = {
    "ack": 2, "bridge": 2, "freeze": 2, "fw": 2, "split": 1, "subnet": 1, "tor": 1, "udt": 2, "wan": 2,
}  # fmt: skip
"""The services that can be a link, with the number of their links."""
ENDS_TCP: Final = frozenset(("ack", "split", "subnet", "tor", "udt"))
"""Those whose TCP connections do not outlast them."""
_OURS: Final = frozenset(
    (
        *(
            "iface",
            "uplink",
            "default",
            "direct",
            "control",
            "user",
            "guard",
            "log",
            "watch",
            "json",
            "metrics",
        ),
        *(
            "pcap",
            "pcap-size",
            "pcap-files",
            "pcap-overwrite",
            "pcap-rules",
            "pcap-dropped",
            "state",
            "version",
        ),
        *("no-reconnect", "help", "start-tor", "torrc", "workers", "realtime", "qmp"),
    )
)
"""Options that a user of vtl-vnet cannot give to a service."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service that is a link: the spec, its name, its options as words, and the number of its links."""

    text: str
    name: str
    words: tuple[str, ...]
    sides: int


def parse_service(spec: str) -> ServiceSpec:
    """Return the service of service:NAME?option=value&flag. Raises SpecError."""
    name, mark, query = spec.removeprefix("service:").partition("?")
    if name not in SIDES:
        raise SpecError(f"{spec!r}: no service that can be a link; write one of {', '.join(SIDES)}")
    words: list[str] = []
    sides = SIDES[name]
    try:
        query = "&".join(word if "=" in word else f"{word}=" for word in query.split("&") if word)
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark), max_num_fields=64)
    except ValueError:
        raise SpecError(f"{spec!r}: cannot be read; write service:NAME?option=value&option=value") from None
    for option, value in pairs:
        if (name, option, value) == ("split", "uplink", ""):
            sides = 2
            continue
        if option in _OURS or not option.replace("-", "").isalnum() or not value.isprintable():
            raise SpecError(f"{spec!r}: {option!r} is not to be given; leave it out (vtl-vnet(1))")
        words += [f"--{option}={value}"] if value else [f"--{option}"]
    return ServiceSpec(spec, name, tuple(words), sides)
