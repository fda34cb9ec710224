"""Lists of the domains in which a guest looks up short names, as DHCP and router advertisements have them."""

import re
from collections.abc import Iterable
from typing import Final

SEARCH_OCTETS_MAX: Final = 255
"""Octets of a list: an option of DHCP holds no more."""
NO_SEARCH: Final = "none"
"""The word for an empty list."""

_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NAME_MAX: Final = 253


def domain(text: str) -> str:
    """Return a domain without its last dot. Raises ValueError if it is none: RFC 1035 section 2.3.1."""
    name = text.removesuffix(".")
    if len(name) > _NAME_MAX or not all(map(_LABEL.fullmatch, name.split("."))):
        raise ValueError(f"{text!r} is no domain")
    return name


def encode_names(domains: Iterable[str]) -> bytes:
    """Return domains as RFC 1035 section 3.1 encodes them, without compression."""
    return b"".join(_encoded(each) for each in domains)


def shortened(domains: Iterable[str]) -> tuple[str, ...]:
    """Return the first of these domains: those that a list has room for."""
    kept: list[str] = []
    for each in domains:
        if len(encode_names((*kept, each))) > SEARCH_OCTETS_MAX:
            break
        kept.append(each)
    return tuple(kept)


def _encoded(name: str) -> bytes:
    labels = (label.encode() for label in name.split("."))
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
