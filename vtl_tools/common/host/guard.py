"""The guard: keeps the host's own network stack off the frames of an interface.

AF_PACKET only copies frames: the host still receives, answers and forwards them. A netdev table of nftables
drops incoming frames after AF_PACKET has seen them, and outgoing frames without our mark. So the service is
the sole recipient and sender, as section 2.1 of the paper requires.

A guard in its *process* form vanishes with the process that raised it ("flags owner", held by the netlink
socket of a libnftables context). In its *kept* form it outlives even kill -9, until vtl-guard clears it.

A chain names its interface. Since Linux 6.16 the kernel compares that name: a chain with another name than
the present one, such as an alternative name, is accepted and has no effect. So a guard is raised by the real
name, and read back.
"""

import os
import re
from typing import Final, Literal, NamedTuple, Self

from vtl_tools.common.errors import DeviceError, PermissionNeededError, VTLError
from vtl_tools.common.host import interface
from vtl_tools.common.host.nft import NFT, decode, encode
from vtl_tools.common.text import stamp

MARK: Final = 0x56544C  # "VTL"
"""SO_MARK of the frames that a guarded interface may send."""

Form = Literal["process", "kept"]

_KEPT: Final = "vtl_kept_"
_OWNED: Final = "vtl_pid"

_RULES: Final = """
add table netdev {table} {flags}
delete table netdev {table}
add table netdev {table} {options}
add chain netdev {table} from_guest {{ type filter hook ingress device "{name}" priority -500; policy drop; }}
add rule netdev {table} from_guest counter drop
add chain netdev {table} to_guest {{ type filter hook egress device "{name}" priority -500; policy drop; }}
add rule netdev {table} to_guest meta mark {mark} accept
add rule netdev {table} to_guest counter drop
"""

_TRIES: Final = 20

_DROP: Final = r"counter packets \d+ bytes \d+ drop"
_SHAPE: Final = {
    "from_guest": ("hook ingress", [_DROP]),
    "to_guest": ("hook egress", [rf"meta mark 0x0*{MARK:x} accept", _DROP]),
}
"""The chains as nft lists them: the hook, and the rules."""


class GuardStatus(NamedTuple):
    """A guard that is installed. pid: the process that it ends with; 0 for the kept form."""

    name: str
    form: Form
    pid: int
    kept_in: int
    """Frames from the guest, kept from the host's stack."""
    kept_out: int
    """Frames of the host's stack, kept from the guest."""
    table: str
    in_force: bool
    fault: str
    """Why the guard is not in force."""
    raised_by: str = ""
    """The service or command that raised it."""
    raised_at: str = ""
    """When, in UTC (RFC 3339)."""


class Guard:
    """A guard on one interface. Raise it before the link is opened, so that there is no gap.

    given: any name of the interface. name: its real name, once the guard is up. by: who raises it.
    """

    def __init__(self, given: str, form: Form = "process", by: str = "vtl") -> None:
        self.given = self.name = given
        self._comment = f"{by} {stamp(exact=False)}"
        self.form = form
        self.raised_anew = 0
        self._prefix = f"{_OWNED}{os.getpid()}_" if form == "process" else _KEPT
        self._table = ""
        self._nft: NFT | None = None
        self.index = 0

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    def check(self) -> str:
        """Raise the guard again if it is not in force. Return what happened to the interface or the guard.

        "" if nothing happened, or the interface is absent. Raises as up() does.
        """
        try:
            name = interface.name_of(self.index)
            if name is None:
                self.index, name = interface.find(self.given)
                happened = "was created again"
            elif name != self.name:
                happened = f"was renamed from {self.name}"
            else:
                happened = self._damage()
        except DeviceError:
            return ""  # it is still absent
        if not happened:
            return ""
        self._raise(name)
        self.raised_anew += 1
        return happened

    def up(self) -> None:
        """Raise the guard, and verify that it is in force.

        Raises DeviceError, PermissionNeededError, or VTLError if libnftables is missing.
        """
        self.index, name = interface.find(self.given)
        try:
            self._nft = self._nft or NFT()
        except PermissionError:
            raise _not_permitted(name) from None
        self._raise(name)
        for _ in range(_TRIES):
            if not self.check():
                return
        raise VTLError(f"{name}: the guard does not stay in force; find the program that removes it")

    def _raise(self, name: str) -> None:
        """Install the rules in one transaction, which replaces earlier ones.

        Another program may have changed them by the return. The kernel then notifies, and check() looks.
        """
        assert self._nft is not None
        if set(name) & set('"*\\'):
            raise DeviceError(f"{name}: nft does not accept this name; rename the interface")
        flags = "{ flags owner; }" if self.form == "process" else ""
        options = f'{{ {"flags owner; " if flags else ""}comment "{self._comment}"; }}'
        before, self._table = self._table, self._prefix + encode(name)
        rules = _RULES.format(table=self._table, flags=flags, options=options, name=name, mark=MARK)
        if self.form == "process" and before not in ("", self._table):
            rules += f"delete table netdev {before}\n"
        for tries in range(_TRIES, 0, -1):
            try:
                self._nft.run(rules)
                break
            except PermissionError:
                raise _not_permitted(name) from None
            except OSError as e:  # perhaps the interface was renamed or deleted, or another program was first
                if interface.name_of(self.index) != name:
                    break
                if tries == 1:
                    raise VTLError(
                        f"{name}: the guard was refused: {e}; needs Linux 5.16 and nft 1.0.1"
                    ) from None
        self.name = name

    def _damage(self) -> str:
        """Return what happened to the rules; "" if they are in force on the interface's present name."""
        assert self._nft is not None
        if self.form == "process":  # for an owned table nft looks up its process, in all of /proc
            asked = [f"list chain netdev {self._table} {chain}" for chain in _SHAPE]
        else:
            asked = [f"list table netdev {self._table}"]
        try:
            listing = "".join(map(self._nft.ask, asked))
        except OSError:
            return "was removed by another program"
        return "was changed by another program" if _fault(listing, self.name) else ""

    def down(self) -> None:
        """Release the guard: the process form vanishes, the kept form stays. Idempotent."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None


def _not_permitted(name: str) -> PermissionNeededError:
    return PermissionNeededError(
        f"{name}: not permitted to raise the guard; run as root or with CAP_NET_ADMIN"
    )


def _chains(listing: str) -> dict[str, list[str]]:
    """Return the lines of each chain of a table's listing."""
    found = re.findall(r"^\tchain (\w+) \{\n(.*?)^\t\}", listing, re.M | re.S)
    return {chain: [line.strip() for line in body.splitlines()] for chain, body in found}


def _device(lines: list[str]) -> str:
    found = re.search(r'hook \w+ devices? [={ ]*"([^"]*)"', lines[0]) if lines else None
    return found[1] if found else ""


def _fault(listing: str, name: str) -> str:
    """Return why a table, as nft lists it, does not guard the interface of this real name; "" if it does."""
    chains = _chains(listing)
    for chain, (hook, rules) in _SHAPE.items():
        lines = chains.get(chain, [])
        if not lines or _device(lines) != name:
            return "no interface of this name" if lines else "changed by another program"
        shape = hook in lines[0] and "priority -500; policy drop;" in lines[0]
        if not shape or len(lines) != 1 + len(rules) or "flags dormant" in listing:
            return "changed by another program"
        if not all(re.fullmatch(rule, line) for rule, line in zip(rules, lines[1:], strict=True)):
            return "changed by another program"
    return ""


def list_guards() -> list[GuardStatus]:
    """Return the guards of this network namespace, in force or not, one per interface name and form.

    Raises PermissionNeededError.
    """
    try:
        nft = NFT()
        listing = nft.ask("list ruleset netdev")
        nft.close()
    except PermissionError:
        raise PermissionNeededError("guard: not permitted to list; run as root") from None
    found = []
    for table, body in re.findall(r"^table netdev (\S+) \{(.*?)^\}", listing, re.M | re.S):
        match = re.fullmatch(rf"{_OWNED}(\d+)_(.+)|{_KEPT}(.+)", table)
        if not match:
            continue
        chains = _chains(body)
        # Before Linux 6.16 a chain stays with its interface and is listed by its new name.
        name = _device(chains.get("from_guest", [])) or decode(match[2] or match[3])
        comment = re.search(r'^\tcomment "(\S+) (\S+)"$', body, re.M)
        fault = _fault(body, name) if interface.is_real(name) else "no interface of this name"
        found.append(
            GuardStatus(
                name=name,
                form="kept" if match[3] else "process",
                pid=int(match[1] or 0),
                kept_in=_counted(chains.get("from_guest", [])),
                kept_out=_counted(chains.get("to_guest", [])),
                table=table,
                in_force=not fault,
                fault=fault,
                raised_by=comment[1] if comment else "",
                raised_at=comment[2] if comment else "",
            )
        )
    return _joined(found)


def _joined(found: list[GuardStatus]) -> list[GuardStatus]:
    """Add the counters of a process's own guard to those of the kept guard on the same interface."""
    kept = {guard.name: guard for guard in found if guard.form == "kept"}
    for other in found:
        if other.form == "process" and (guard := kept.get(other.name)):
            kept[guard.name] = guard._replace(
                kept_in=guard.kept_in + other.kept_in,
                kept_out=guard.kept_out + other.kept_out,
                in_force=guard.in_force or other.in_force,
                fault="" if other.in_force else guard.fault,
            )
    return [*kept.values(), *(guard for guard in found if guard.name not in kept)]


def _counted(lines: list[str]) -> int:
    counts = re.findall(r"counter packets (\d+)", "\n".join(lines))
    return int(counts[-1]) if counts else 0


def clear(name: str) -> int:
    """Remove the kept guards of an interface, which may be gone. Return how many there were.

    Raises VTLError if a guard belongs to a running process: end that instead.
    """
    names = {name, interface.real(name)}
    kept = [
        g
        for g in list_guards()
        if g.form == "kept" and (g.name in names or decode(g.table[len(_KEPT) :]) in names)
    ]
    nft = NFT()
    try:
        for guard in kept:
            nft.run(f"delete table netdev {guard.table}")
    except PermissionError:
        raise PermissionNeededError(f"{name}: not permitted to remove the guard; run as root") from None
    except OSError as e:
        raise VTLError(f"{name}: the guard could not be removed: {e}") from None
    finally:
        nft.close()
    return len(kept)
