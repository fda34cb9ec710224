"""A private Tor network of real tor processes, for tests and the demo; up in about ten seconds.

    with Lab() as lab:
        net = TorNetwork(lab, lab.host("world"), names={"www.example": ("203.0.113.80",)})
        lab.http(net.site, 80, {"index.html": b"hello"})
        client = net.client(lab.host("guest"))
        ...                                             # SOCKS on the unix socket client.socks

Three directory authorities or more live in one host, the world; they are relays and exits, too, each with an
address of its own, from which it leaves. A name server there answers the exits and nobody else. Another host,
the site, is for servers, and is reached by the world only: a client's host is joined to the world by a cable,
and reaches the relays. All files are in the lab's directory.

A network of defaults comes up by chance, so each step here is told to begin when the one before it is seen to
have ended, and is told again when it comes to nothing:

* A relay sends its descriptor to each authority once, and not again soon if one refuses: so none does before
  all listen.
* Authorities vote by the wall clock, and a consensus is valid however few relays are in it: so the time of
  the first vote is set when each authority knows each relay, and the next vote is half an hour away.
* A client that is refused, or told that there is no consensus, waits up to three times as long before it asks
  again, at random and without a bound: so it is started last.
"""

import math
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab.dns import Names
from lab.errors import LabError
from lab.netns import Host, Lab
from lab.torcontrol import Control
from lab.wait import PATIENCE_S, until

RELAYS = {  # by nickname: where each listens, and leaves from
    "ichi": ("198.51.100.1", "2001:db8:100::1"),
    "ni": ("198.51.100.2", "2001:db8:100::2"),
    "san": ("198.51.100.3", "2001:db8:100::3"),
    "shi": ("198.51.100.4", "2001:db8:100::4"),
    "go": ("198.51.100.5", "2001:db8:100::5"),
}
NAME_SERVER = "203.0.113.53"
SITES = ("203.0.113.80", "2001:db8:113::80")
"""The addresses of the site, for what a test serves there."""

RELAYS_FOR_ONIONS = 4
"""A circuit to a relay that the other side chose has four hops."""

OR_PORT, DIR_PORT = 9001, 9030
SOCKS_PORT = 9050
"""A client's on 127.0.0.1 of its host, for programs that know no unix socket."""
START_S = PATIENCE_S  # for a process to listen, or to make keys
STEP_S = 5.0  # for a step that may be told again
STEPS = 5  # that often
BOOTSTRAP_S = 2 * PATIENCE_S  # 2 s on two idle cores
LOG_LINES = 10  # of a tor's log, in an error's message

VOTING_S = 1800
"""How long a consensus is fresh: no test sees another. Also the largest that divides tor's half hour."""
VOTE_S = 2  # for the votes, and as much for the signatures: the least that tor allows

_COMMON = """
ControlPort unix:{dir}/data/control
CookieAuthentication 1
CookieAuthFile {dir}/data/cookie
DataDirectory {dir}/data
Log notice file {dir}/log
SafeLogging 0
"""

_MEMBER = """
TestingTorNetwork 1
UseEntryGuards 0
"""

_AUTHORITY = """
Nickname {name}
ContactInfo {name}@world.example
Address {v4}
ORPort {v4}:{or_port} IPv4Only
DirPort {v4}:{dir_port}
OutboundBindAddress {v4}
OutboundBindAddress [{v6}]
PublishServerDescriptor 0
AssumeReachable 1
AuthDirTestReachability 0
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
V3AuthVotingInterval {voting} seconds
V3AuthVoteDelay {vote} seconds
V3AuthDistDelay {vote} seconds
TestingV3AuthInitialVotingInterval {voting} seconds
TestingV3AuthInitialVoteDelay {vote} seconds
TestingV3AuthInitialDistDelay {vote} seconds
TestingV3AuthVotingStartOffset {offset} seconds
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
TestingMinExitFlagThreshold 0
TestingMinFastFlagThreshold 0
ConsensusParams vanguards-lite-enabled=0 cfx_enabled=0
SocksPort 0
ExitRelay 1
IPv6Exit 1
ExitPolicy accept *:*
ServerDNSResolvConfFile {dir}/resolv.conf
ServerDNSDetectHijacking 0
ServerDNSTestAddresses
ServerDNSSearchDomains 0
"""

_CLIENT = """
SocksPort unix:{dir}/socks WorldWritable ExtendedErrors IsolateSOCKSAuth
SocksPort 127.0.0.1:{socks_port} ExtendedErrors IsolateSOCKSAuth
"""

_ONIONS = """
SocksPort 0
"""


class Tor:
    """One tor process, made by TorNetwork. dir: its files. log: the file of its log.

    socks: a client's unix socket for SOCKS, open to every user. control: the unix socket of its control
    port; cookie: the file with the cookie for that.
    """

    def __init__(self, name: str, host: Host, directory: Path) -> None:
        self.name, self.host, self.dir = name, host, directory
        self.log, self.cookie = directory / "log", directory / "data/cookie"
        self.socks, self.control = directory / "socks", directory / "data/control"
        self.process: subprocess.Popen[Any] | None = None
        (directory / "data/keys").mkdir(parents=True)
        for private in directory / "data", directory / "data/keys":
            private.chmod(0o700)

    def __repr__(self) -> str:
        return f"<Tor {self.name} on {self.host.name}>"

    def start(self, options: str) -> None:
        """Start tor with these lines of torrc. It ends with the lab."""
        torrc = self.dir / "torrc"
        torrc.write_text(options)
        with (self.dir / "output").open("wb") as out:
            self.process = self.host.popen("tor", "--hush", "-f", torrc, stdout=out, stderr=out)

    def listening(self) -> None:
        """Wait until tor answers; its ports are open then. LabError, with the log's end, if it does not."""
        self._wait(self.cookie.exists, START_S)  # made after the control port
        self.ask("GETINFO version")

    def ready(self) -> None:
        """Wait until tor has built a circuit. LabError, with the log's end, if it does not."""
        self._wait(lambda: self.log.exists() and "Bootstrapped 100%" in self.log.read_text(), BOOTSTRAP_S)

    def ask(self, *commands: str) -> list[str]:
        """Give the control port commands, such as "SIGNAL NEWNYM"; return the lines of the answers.

        "GETINFO stream-status" returns a line for each stream. LabError if tor refuses one.
        """
        try:
            with self.connect() as control:
                return [line for command in commands for line in control.ask(command)]
        except LabError as error:
            raise self.explained(error) from None

    def connect(self) -> Control:
        """Return a connection to the control port, for who waits for events."""
        return Control(self.control, self.cookie)

    def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        def true() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise LabError(f"ended with status {self.process.returncode}")
            return condition()

        try:
            until(true, "not ready", timeout)
        except LabError as error:
            raise self.explained(error) from None

    def explained(self, error: LabError) -> LabError:
        """Return the error with the end of the log."""
        texts = [path.read_text() for path in (self.log, self.dir / "output") if path.exists()]
        lines = "\n".join("\n".join(texts).strip().splitlines()[-LOG_LINES:])
        return LabError(f"tor {self.name}: {error}; its last lines:\n{lines}")


class TorNetwork:
    """Authorities that are relays and exits, a name server for them, and clients.

    world: the host of the relays. site: the host for servers, with the addresses SITES.
    names: addresses by name, for the exits; `names.names` may be changed later. Returns from its making
    when all relays serve a consensus that has all of them.
    """

    def __init__(
        self,
        lab: Lab,
        world: Host,
        *,
        names: Mapping[str, tuple[str, ...]] | None = None,
        relays: int = 3,
    ) -> None:
        if not 3 <= relays <= len(RELAYS):
            raise LabError(f"tor: {relays} relays; a circuit takes 3, and there are {len(RELAYS)}")
        for program in "tor", "tor-gencert":
            if shutil.which(program) is None:
                raise LabError(f"tor: no {program} here; install Debian's tor")
        self.lab, self.world = lab, world
        self.dir = lab.dir / "tor"
        self.dir.mkdir()
        self._joined: list[Host] = []
        self._onions: Tor | None = None
        places = dict(list(RELAYS.items())[:relays])
        for address in (*(a for pair in places.values() for a in pair), NAME_SERVER):
            world.addr("lo", f"{address}/{128 if ':' in address else 32}")
        self.site = lab.host("site")
        self._join_site()
        self.names = Names(world, NAME_SERVER, names or {})
        lab.defer(self.names.close)
        self.relays = [Tor(name, world, self.dir / name) for name in places]
        with ThreadPoolExecutor(len(self.relays)) as threads:  # RSA keys take their time
            self._authorities = "".join(threads.map(self._make_keys, self.relays))
        self._start_relays()
        self._again("relays did not get each other's descriptors", self._publish, self._all_known)
        self._again("no consensus with all relays", self._vote, self._all_agreed)

    def torrc_client(self) -> str:
        """Return the lines of torrc by which any tor in a joined host becomes a client of this network."""
        return _MEMBER + self._authorities

    def join(self, host: Host) -> None:
        """Lay a cable between a host and the world, and route to the relays, which are all it may reach.

        Once for a host: nothing is done the next time.
        """
        if host in self._joined:
            return
        self._joined.append(host)
        number = len(self._joined)
        inside, outside = f"10.99.{number}.2", f"10.99.{number}.1"
        self.lab.veth(host, "tor0", self.world, f"client{number}")
        host.addr("tor0", f"{inside}/24")
        self.world.addr(f"client{number}", f"{outside}/24")
        host.route("198.51.100.0/24", outside)

    def client(self, host: Host, *, wait: bool = True, more: str = "") -> Tor:
        """Run a client in a host, which is joined to the world for it. more: further lines of its torrc.

        wait=False: return at once; ready() waits until it has built a circuit.
        """
        self.join(host)
        client = Tor(f"client-{host.name}", host, self.dir / f"client-{host.name}")
        self._start(client, _CLIENT + more, socks_port=SOCKS_PORT)
        if wait:
            client.ready()
        return client

    def onion(self, port: int = 80, target: str = f"{SITES[0]}:80") -> str:
        """Put an onion service before a server of the site, and return its name when it can be found."""
        if len(self.relays) < RELAYS_FOR_ONIONS:
            raise LabError(f"tor: {len(self.relays)} relays; an onion service takes {RELAYS_FOR_ONIONS}")
        if self._onions is None:
            self._onions = Tor("onions", self.world, self.dir / "onions")
            self._start(self._onions, _ONIONS)
            self._onions.ready()
        try:
            with self._onions.connect() as control:
                name = self._published(control, port, target)
        except LabError as error:
            raise self._onions.explained(error) from None
        return f"{name}.onion"

    def _published(self, control: Control, port: int, target: str) -> str:
        """Add an onion service; wait until each relay has its descriptors, this period's and the next's."""
        deadline = time.monotonic() + BOOTSTRAP_S
        control.ask("SETEVENTS HS_DESC")
        answer = control.ask(f"ADD_ONION NEW:ED25519-V3 Flags=DiscardPK,Detach Port={port},{target}")
        name = answer[0].removeprefix("ServiceID=")
        stored: Counter[str] = Counter()
        while len(stored) < len(self.relays) or min(stored.values()) < 2:
            event, action, address, _, relay, *_ = control.event(deadline).split()
            if (event, action, address) == ("HS_DESC", "UPLOADED", name):
                stored[relay] += 1
        return name

    def _start(self, tor: Tor, options: str, **values: object) -> None:
        text = _COMMON + options
        tor.start(text.format(name=tor.name, dir=tor.dir, **values) + self.torrc_client())

    def _start_relays(self) -> None:
        distant = (int(time.time()) + VOTING_S // 2) % VOTING_S  # no vote before _vote()
        for relay in self.relays:
            (relay.dir / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
            v4, v6 = RELAYS[relay.name]
            where = {"v4": v4, "v6": v6, "or_port": OR_PORT, "dir_port": DIR_PORT}
            self._start(relay, _AUTHORITY, **where, voting=VOTING_S, vote=VOTE_S, offset=distant)
        for relay in self.relays:
            relay.listening()

    def _again(self, what: str, step: Callable[[int], float], done: Callable[[], bool]) -> None:
        """Tell all relays to take a step, and again if it is not done within the seconds that it returns."""
        for attempt in range(STEPS):
            try:
                until(done, what, step(attempt))
            except LabError as error:
                failure = error
            else:
                return
        raise self.relays[0].explained(LabError(f"{failure}, the last of {STEPS} times"))

    def _publish(self, _attempt: int) -> float:
        for relay in self.relays:
            relay.ask("SETCONF PublishServerDescriptor=0", "SETCONF PublishServerDescriptor=1")
        return STEP_S

    def _all_known(self) -> bool:
        return all(
            sum(line.startswith("router ") for line in relay.ask("GETINFO desc/all-recent"))
            >= len(self.relays)
            for relay in self.relays
        )

    def _vote(self, attempt: int) -> float:
        """Let the authorities vote in a second's time; a crowded machine gets longer the next time."""
        delay = VOTE_S * (1 + attempt)
        when = math.ceil(time.time()) + 1 + 2 * delay
        for relay in self.relays:
            relay.ask(
                f"SETCONF TestingV3AuthInitialVoteDelay={delay} TestingV3AuthInitialDistDelay={delay}"
                f" TestingV3AuthVotingStartOffset={when % VOTING_S}"
            )
        return when - time.time() + delay

    def _all_agreed(self) -> bool:
        return all(
            sum(line.startswith("s ") and " Running " in line for line in relay.ask("GETINFO ns/all"))
            == len(self.relays)
            for relay in self.relays
        )

    def _make_keys(self, relay: Tor) -> str:
        """Make the keys of an authority, and return the line by which the others know it.

        One key is both the relay's identity and the authority's. tor-gencert makes one of its own when told
        to, which is three times as long, and takes seconds.
        """
        data, v4 = relay.dir / "data", RELAYS[relay.name][0]
        listed = self.world.run(
            *("tor", "--quiet", "--ignore-missing-torrc", "-f", relay.dir / "none", "--list-fingerprint"),
            *("--DataDirectory", data, "--ORPort", str(OR_PORT), "--Nickname", relay.name),
            *("--DirAuthority", f"none 127.0.0.1:1 {'f' * 40}"),
            timeout=START_S,
        ).stdout
        self.world.run(
            *("tor-gencert", "-m", "12", "-a", f"{v4}:{DIR_PORT}", "-i", data / "keys/secret_id_key"),
            *("-s", data / "keys/authority_signing_key", "-c", data / "keys/authority_certificate"),
            timeout=START_S,
        )
        if (found := re.search(rf"^{relay.name} ([\w ]+)$", listed, re.MULTILINE)) is None:
            raise LabError(f"tor {relay.name}: no fingerprint in what tor says: {listed}")
        identity = found[1].replace(" ", "")
        return f"DirAuthority {relay.name} orport={OR_PORT} v3ident={identity} {v4}:{DIR_PORT} {identity}\n"

    def _join_site(self) -> None:
        """Lay a cable between the world and the site. A refusal over a cable comes as it does in earnest."""
        self.lab.veth(self.world, "site", self.site, "eth0")
        self.world.addr("site", "10.98.0.1/24", "fd98::1/64")
        self.site.addr("eth0", "10.98.0.2/24", "fd98::2/64")
        self.site.addr("lo", f"{SITES[0]}/32", f"{SITES[1]}/128")
        self.world.route(SITES[0], "10.98.0.2")
        self.world.route(SITES[1], "fd98::2")
        self.site.route("198.51.100.0/24", "10.98.0.1")
        self.site.route("2001:db8:100::/64", "fd98::1")
