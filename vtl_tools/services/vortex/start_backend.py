"""Builds vortex-backend: the keys of its clients, the listener, and the stage."""

from functools import partial
from pathlib import Path
from typing import Any

# The library imports it at its first use, when the service may not read root's modules any more.
import cryptography.hazmat.backends.openssl.backend  # noqa: F401

from vtl_tools.common.errors import SpecError
from vtl_tools.common.runtime.control import Verb
from vtl_tools.common.session.base import Address
from vtl_tools.common.session.keys import make_key_file
from vtl_tools.services.vortex.addresses import BACKEND, Pair
from vtl_tools.services.vortex.backend import VortexBackend
from vtl_tools.services.vortex.backend_link import BackendLink
from vtl_tools.services.vortex.client_keys import KeyDirectory, next_file
from vtl_tools.services.vortex.listener import ClientListener


def make_backend(listen: Address, keys: Path, rate_bps: float, honeypot: Pair) -> VortexBackend:
    """Return the stage, which listens. Raises VTLError."""
    directory = KeyDirectory(keys, rate_bps)
    if not (clients := directory.clients()):
        raise SpecError(f"{keys}: has no key; make one: 'vortex-backend keygen {keys} NAME'")
    listener = ClientListener(listen)
    stage = VortexBackend(BackendLink(*honeypot), {4: BACKEND[0], 16: BACKEND[1]}, clients, listener)
    stage.read_keys = partial(directory.begin, stage)
    listener.on_frames, listener.on_connected = stage.on_frames, stage.on_connected
    stage.sources = [listener]
    return stage


def make_client_key(directory: Path, name: str) -> Path:
    """Create the key of a new client, and the directory if it is absent. Return its file. Raises VTLError."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        path = next_file(directory, name)
    except OSError as e:
        raise SpecError(f"{directory}: {e.strerror}; name a directory that can be written") from None
    make_key_file(path)
    return path


def verbs(stage: VortexBackend) -> dict[str, Verb]:
    """Return the verbs of a running backend."""
    from time import monotonic

    def log(_: dict[str, Any]) -> dict[str, Any]:
        return {"flows": list(stage.told(monotonic()))}

    return {"log": log}
