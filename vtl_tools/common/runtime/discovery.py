"""Finds the services of a tool on this host: those that run, that were killed, and that belong to others."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vtl_tools.common.errors import DiedError, NotRunningError, PermissionNeededError, VTLError
from vtl_tools.common.runtime import control, run_record
from vtl_tools.common.runtime.run_record import RunRecord

_USERS: Final = Path("/run/user")

State = Literal["running", "died", "not answering", "not permitted", "absent"]


@dataclass(frozen=True)
class Found:
    """A service, by its control socket. not answering: its process exists, and nobody listens."""

    socket: Path
    state: State
    record: RunRecord | None

    def error(self) -> NotRunningError | PermissionNeededError:
        """Return why the service cannot be asked."""
        if self.state == "not permitted":
            owner = control.owner_of(self.socket)
            return PermissionNeededError(f"{self.socket}: not permitted to ask; run as {owner}")
        if self.state == "not answering":
            return NotRunningError(f"{self.socket}: the service starts, ends or is stopped; ask again")
        if self.record is not None:
            return DiedError(self.record.obituary())
        if self.state == "died":
            return DiedError(f"{self.socket}: its service died; start it again, or remove the socket")
        return NotRunningError(f"{self.socket}: no service answers; see which run with 'vtl-SERVICE status'")


def survey(service: str, spec: str | None) -> list[Found]:
    """Return the services of a tool: the one on link `spec`, or all. spec may be a control socket's path.

    Raises NotRunningError if there are none, PermissionNeededError if others' may not be looked for.
    """
    if spec is not None:
        one = look_at(_socket(service, spec))
        if one.state == "absent":
            raise one.error()
        return [one]
    sockets: set[Path] = set()
    denied = ""
    for place in _places():
        try:
            names = [path.name for path in place.iterdir()] if place.is_dir() else []
        except PermissionError:
            denied = str(place)
            continue
        for name in names:
            stem, dot, kind = name.rpartition(".")
            if name.startswith(f"{service}-") and dot and kind in ("sock", "run"):
                sockets.add(place / f"{stem}.sock")
    if found := [each for each in map(look_at, sorted(sockets)) if each.state != "absent"]:
        return found
    if denied:
        raise PermissionNeededError(f"{denied}: not permitted to look for root's services; run as root")
    hint = _elsewhere(service) + "".join(
        f"; {name} stays cut off since one ended: 'vtl-guard clear {name}' gives it back"
        for name, by in (_kept() or {}).items()
        if by == service
    )
    raise NotRunningError(f"no service runs here; start one, or give its control socket by --link{hint}")


def find(service: str, spec: str | None) -> list[Path]:
    """Return the control sockets of the services that can be asked: the one on link `spec`, or all.

    Raises NotRunningError, DiedError or PermissionNeededError if there are none.
    """
    if spec is not None:
        return [_socket(service, spec)]
    found = survey(service, None)
    if running := [each.socket for each in found if each.state == "running"]:
        return running
    raise next((each for each in found if each.state == "died"), found[0]).error()


def look_at(socket: Path) -> Found:
    """Return the state of the service with this control socket."""
    file = run_record.record_of(socket)
    record = run_record.read(file)
    state: State = "running"
    try:
        control.connect(socket).close()
    except PermissionError:
        state = "not permitted"
    except OSError:
        if record is not None:
            state = "not answering" if record.is_locked else "died"
            record = record if record.is_locked else _as_guarded_now(record)
        elif file.exists() and not os.access(file, os.R_OK):
            state = "not permitted"
        else:
            state = "died" if socket.exists() else "absent"
    return Found(socket, state, record)


def _as_guarded_now(record: RunRecord) -> RunRecord:
    """Return a record with the guards that are still in force, as far as this user may know."""
    if record.namespace != run_record.network_namespace() or not record.cut_off():
        return record
    if (kept := _kept()) is None:
        return record
    lifted = dict.fromkeys(set(record.cut_off()) - set(kept), "lifted")
    return record._replace(guards={**record.guards, **lifted})


def _kept() -> dict[str, str] | None:
    """Return who raised the kept guard of each interface; None: this user may not know."""
    from vtl_tools.common.host.guard import list_guards  # only where a service does not answer

    try:
        found = list_guards()
    except VTLError:
        return None
    return {guard.name: guard.raised_by for guard in found if guard.form == "kept" and guard.in_force}


def forget(interface: str) -> None:
    """Remove the records of killed services that kept a guard on an interface."""
    for path in control.directory().glob("*.run"):
        record = run_record.read(path)
        if record is not None and not record.is_locked and interface in record.cut_off():
            path.unlink(missing_ok=True)


def _socket(service: str, spec: str) -> Path:
    if spec.endswith(".sock") and "/" in spec:
        return Path(spec)
    path = control.path_for(service, spec)
    others = (place / path.name for place in _places())
    return path if _exists(path) else next(filter(_exists, others), path)


def _exists(path: Path) -> bool:
    try:
        return path.exists() or run_record.record_of(path).exists()
    except PermissionError:
        return True  # asking it reports this


def _places() -> Sequence[Path]:
    """Return the directories of control sockets: where our services' are, and root's."""
    own = control.directory()
    return [own] if "VTL_RUN" in os.environ or own == control.ROOTS else [own, control.ROOTS]


def _elsewhere(service: str) -> str:
    """Return a hint at the services of other users."""
    if os.geteuid() != 0 or "VTL_RUN" in os.environ:
        return ""
    other = next(_USERS.glob(f"*/vtl/{service}-*.sock"), None)
    return "" if other is None else f", such as {other}"
