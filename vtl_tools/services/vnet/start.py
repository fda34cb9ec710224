"""Makes the stage of vtl-vnet from its options and its configuration file."""

import socket
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# The library imports it at its first use, when the service may not read root's modules any more.
import cryptography.hazmat.backends.openssl.backend  # noqa: F401

import vtl_tools.common.device.channel
import vtl_tools.common.device.dgram
import vtl_tools.common.device.stream
import vtl_tools.common.device.vxlan  # likewise: links are added while the service runs
from vtl_tools.common.errors import SpecError
from vtl_tools.common.host import privilege
from vtl_tools.common.session.items import LINK_NAME
from vtl_tools.services.vnet.adapt import IDLE_S
from vtl_tools.services.vnet.adapting import MODES, AdaptSettings
from vtl_tools.services.vnet.carrying import PORT
from vtl_tools.services.vnet.keeper import ServiceKeeper
from vtl_tools.services.vnet.links import parse_link
from vtl_tools.services.vnet.rule import parse_vnet_rule
from vtl_tools.services.vnet.stage import Overlay

with suppress(ImportError):  # without h2 there are no evpn: links
    import vtl_tools.services.vnet.evpn.exchange  # noqa: F401

_OCTETS_MAX: Final = 1 << 20


@dataclass
class VnetSettings:
    """The overlay at the start. links: (name, spec). name: of this daemon; the host's, if it is not given.

    adapt: one of adapting.MODES. adapt_port, adapt_idle: see adapting.AdaptSettings.
    """

    iface: list[str] = field(default_factory=list)
    uplink: str | None = None
    key_file: str | None = None
    name: str | None = None
    adapt: str | None = None
    adapt_port: int | None = None
    adapt_idle: int | None = None
    links: list[tuple[str, str]] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise SpecError for a name, a link or a rule that cannot be."""
        if self.name is not None and not LINK_NAME.fullmatch(self.name):
            raise SpecError(f"{self.name!r}: no name; write up to 32 letters, digits, '_', '.' and '-'")
        if self.adapt not in (None, *MODES):
            raise SpecError(f"adapt: {self.adapt!r} is none of {', '.join(MODES)}")
        for name, spec in self.links:
            parse_link(name, spec)
        for text in self.rules:
            parse_vnet_rule(text)


def read_config(path: Path) -> VnetSettings:
    """Return the settings of a TOML file. Raises SpecError."""
    try:
        with path.open("rb") as file:
            found = tomllib.loads(file.read(_OCTETS_MAX).decode())
    except OSError as e:
        raise SpecError(f"{path}: {e.strerror}; name a file that can be read") from None
    except ValueError as e:
        raise SpecError(f"{path}: {str(e).splitlines()[0]}; mend the file (vtl-vnet(1))") from None
    known: dict[str, type | tuple[type, ...]] = {
        "iface": (str, list), "uplink": str, "key-file": str, "name": str, "adapt": str, "adapt-port": int,
        "adapt-idle": int, "links": dict, "rules": list,
    }  # fmt: skip
    for name, value in found.items():
        if name not in known:
            raise SpecError(f"{path}: {name!r} is unknown; write {', '.join(known)}")
        if not isinstance(value, known[name]) or not _is_text(value):
            raise SpecError(f"{path}: {name!r} has the wrong type; see vtl-vnet(1)")
    iface: Any = found.get("iface", [])
    return VnetSettings(
        [iface] if isinstance(iface, str) else iface,
        found.get("uplink"),
        found.get("key-file"),
        found.get("name"),
        found.get("adapt"),
        found.get("adapt-port"),
        found.get("adapt-idle"),
        list(found.get("links", {}).items()),
        found.get("rules", []),
    )


def _is_text(value: object) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(isinstance(one, str) for one in inner)


def _host_name() -> str:
    name = socket.gethostname().partition(".")[0][:32]
    return name if LINK_NAME.fullmatch(name) else "vnet"


def make_stage(
    settings: VnetSettings,
    key: bytes | None,
    program: Callable[[str], list[str]],
    user: str | None,
    ports: Sequence[str],
) -> Overlay:
    """Return the stage, with its links open. Raises VTLError."""
    evpn = [spec for _, spec in settings.links if spec.startswith("evpn:")]
    keeper = ServiceKeeper(program, privilege.account(user), evpn)
    try:
        adapt = AdaptSettings(
            settings.adapt or "off", settings.adapt_port or PORT, settings.adapt_idle or IDLE_S
        )
        overlay = Overlay(ports, key, keeper, settings.name or _host_name(), adapt)
        for name, spec in settings.links:
            overlay.add_link(name, spec)
        for text in settings.rules:
            overlay.add_rule(text)
    except BaseException:
        keeper.close()
        raise
    return overlay
