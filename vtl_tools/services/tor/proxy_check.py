"""Checks a SOCKS proxy: does it answer, is it Tor, which address does a web service see?

It uses PySocks, which is independent of our own client.
"""

import contextlib
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Final
from urllib.parse import urlsplit

import socks

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.text import host_and_port

log = logging.getLogger(__name__)

CHECK_USER: Final = "vtl-check"
PATIENCE_S: Final = 10.0
EXIT_PATIENCE_S: Final = 60.0
"""Tor builds a circuit first."""

CHECK_URL: Final = "http://check.torproject.org/api/ip"
"""Answers with the client's address, as {"IsTor": true, "IP": "192.0.2.1"}."""

_IMPOSSIBLE: Final = "a" * 56 + ".onion"
"""An address with a wrong checksum: Tor refuses it at once, without a circuit."""

_ANSWER_MAX: Final = 16384
_BAD_ONION: Final = "0xf6"

Proxy = tuple[str, int] | str


@dataclass(frozen=True, slots=True)
class ProxyReport:
    """The result of a probe. says: the proxy's answer to an impossible name."""

    is_tor: bool
    says: str


class _UnixSocks(socks.socksocket):  # type: ignore[misc] # bears no types
    """PySocks over a unix socket, which it does not support itself."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX)
        self._path = path

    def _proxy_addr(self) -> str:
        return self._path


def described(proxy: Proxy) -> str:
    """Return a proxy as the user writes it."""
    if isinstance(proxy, str):
        return f"unix:{proxy}"
    return host_and_port(*proxy)


def resolved(proxy: Proxy) -> Proxy:
    """Return a proxy with its address in place of its name. Raises VTLError if it has none."""
    if isinstance(proxy, str):
        return proxy
    try:
        found = socket.getaddrinfo(*proxy, type=socket.SOCK_STREAM)
    except OSError as e:
        raise VTLError(f"{described(proxy)}: {_why(e)}; name Tor's SOCKS port, or give --start-tor") from None
    return str(found[0][4][0]), proxy[1]


def probe(proxy: Proxy, user: str | None = None) -> ProxyReport:
    """Return whether a SOCKS 5 proxy is Tor. user: to log in with, so that Tor isolates the probe.

    Raises VTLError if the proxy does not answer.
    """
    name = described(proxy)
    _reach(proxy)
    try:
        with _socket(proxy, PATIENCE_S, user) as sock:
            sock.connect((_IMPOSSIBLE, 80))
            says = "it connected to a name that cannot be"
    except (socks.ProxyError, OSError) as e:
        cause = getattr(e, "socket_err", None) or e  # PySocks wraps its own errors
        if isinstance(cause, socks.SOCKS5Error):
            says = str(cause)
        elif isinstance(cause, socks.SOCKS5AuthError):
            raise VTLError(f"{name}: takes no user and password; give --isolate none") from None
        else:
            raise VTLError(f"{name}: does not speak SOCKS 5: {_why(cause)}; name Tor's SOCKS port") from None
    return ProxyReport(_BAD_ONION in says or _says_so(proxy), says)


def exit_address(proxy: Proxy, url: str = CHECK_URL, user: str | None = None) -> dict[str, object]:
    """Ask a web service through the proxy for the client's address; return a JSON object, or {"IP": ...}.

    Only text and numbers of the object are returned. The web service, or the exit relay, may have written
    anything there. Raises VTLError if there is no answer.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise SpecError(f"{url}: not an address that can be asked; write one that begins with http://")
    _reach(proxy)
    try:
        with _socket(proxy, EXIT_PATIENCE_S, user) as sock:
            sock.connect((parts.hostname, parts.port or 80))
            sock.sendall(f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.hostname}\r\n\r\n".encode())
            answer = b""
            while len(answer) < _ANSWER_MAX and (more := sock.recv(4096)):
                answer += more
    except (socks.ProxyError, OSError) as e:
        raise VTLError(
            f"{url}: not reached through {described(proxy)}: {_why(getattr(e, 'socket_err', None) or e)}"
        ) from None
    body = answer.partition(b"\r\n\r\n")[2].decode(errors="replace").strip()
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(body)
        if isinstance(found, dict) and found:
            return {key: value for key, value in found.items() if isinstance(value, str | int | None)}
    if found := re.fullmatch(r"[0-9a-fA-F.:]{3,45}", body):
        return {"IP": found[0]}
    raise VTLError(f"{url}: what it answers through {described(proxy)} tells no address")


def find_proxy(proxy: Proxy, user: str | None, *, check: bool) -> tuple[Proxy, bool]:
    """Return the proxy by its address, and whether it is Tor; False without check. Raises VTLError."""
    proxy = resolved(proxy)
    is_tor = check and probe(proxy, user).is_tor
    if check and not is_tor:
        log.warning("%s: answers, and is not Tor: it sees where the guest goes", described(proxy))
    return proxy, is_tor


def show_exit_address_later(proxy: Proxy, url: str, show: Callable[[dict[str, object]], object]) -> None:
    """Pass exit_address() to show, in a thread of its own, since the answer takes a while."""

    def ask() -> None:
        try:
            show(exit_address(proxy, url, CHECK_USER))
        except VTLError as e:
            log.warning("%s", e)

    Thread(target=ask, daemon=True).start()


@contextlib.contextmanager
def _socket(proxy: Proxy, timeout_s: float, user: str | None) -> Iterator["socks.socksocket"]:
    password = None if user is None else "check"
    if isinstance(proxy, str):
        sock = _UnixSocks(proxy)
        sock.set_proxy(socks.SOCKS5, "unix", 1, rdns=True, username=user, password=password)
    else:
        sock = socks.socksocket(_family(proxy))
        sock.set_proxy(socks.SOCKS5, *proxy, rdns=True, username=user, password=password)
    with sock:
        sock.settimeout(timeout_s)
        yield sock


def _reach(proxy: Proxy) -> None:
    """Raise VTLError if nobody listens, which PySocks does not report of a unix socket."""
    try:
        with socket.socket(_family(proxy)) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(proxy)
    except OSError as e:
        remedy = "start tor there, or one of our own with --start-tor"
        raise VTLError(f"{described(proxy)}: {_why(e)}; {remedy}") from None


def _family(proxy: Proxy) -> socket.AddressFamily:
    if isinstance(proxy, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in proxy[0] else socket.AF_INET


def _says_so(proxy: Proxy) -> bool:
    """Whether it answers an HTTP request as Tor does."""
    with contextlib.suppress(OSError), socket.socket(_family(proxy)) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(proxy)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"Tor is not an HTTP Proxy" in sock.recv(_ANSWER_MAX)
    return False


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
