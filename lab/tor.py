"""A private Tor network of real tor processes, for tests and the demo; up in about ten seconds.

    with Lab() as lab:
        net = TorNetwork(lab, lab.host("world"), names={"www.example": ("203.0.113.80",)})
        lab.http(net.site, 80, {"index.html": b"hello"})
        client = net.client(lab.host("guest"))
        ...                                             # SOCKS on the unix socket client.socks

Three directory authorities live in one host, the world; they are relays and exits, too, each with an address
of its own, from which it leaves. A name server there answers the exits and nobody else. Another host, the
site, is for servers, and is reached by the world only: a client's host is joined to the world by a cable, and
reaches the relays. All files are in the lab's directory.
"""

import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab.dns import Names
from lab.errors import LabError
from lab.netns import Host, Lab
from lab.wait import until

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

RELAYS_FOR_ONIONS = 5
"""A circuit to a relay that the other side chose has four hops; one more, since relays may be busy."""

OR_PORT, DIR_PORT = 9001, 9030
SOCKS_PORT = 9050
"""A client's on 127.0.0.1 of its host, for programs that know no unix socket."""
BOOTSTRAP_S = 90.0  # 10 on two idle cores
LOG_LINES = 10  # of a tor's log, in an error's message
CONTROL_S = 10.0

VOTING_S = 5
FIRST_CONSENSUS_S = 8
"""After the start. The votes are cast 4 s before, and by then relays must know each other, or the first
consensus lacks some, and a client waits for the next, 20 s later."""

_COMMON = """
TestingTorNetwork 1
PathsNeededToBuildCircuits 0.25
EnforceDistinctSubnets 0
UseEntryGuards 0
VanguardsLiteEnabled 0
ControlPort unix:{dir}/data/control
CookieAuthentication 1
CookieAuthFile {dir}/data/cookie
DataDirectory {dir}/data
Log notice file {dir}/log
SafeLogging 0
{authorities}
"""

_AUTHORITY = """
Nickname {name}
ContactInfo {name}@world.example
Address {v4}
ORPort {v4}:{or_port} IPv4Only
DirPort {v4}:{dir_port}
OutboundBindAddress {v4}
OutboundBindAddress [{v6}]
AssumeReachable 1
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
TestingV3AuthInitialVotingInterval {interval} seconds
TestingV3AuthInitialVoteDelay 2 seconds
TestingV3AuthInitialDistDelay 2 seconds
TestingV3AuthVotingStartOffset {offset} seconds
V3AuthVotingInterval 20 seconds
V3AuthVoteDelay 4 seconds
V3AuthDistDelay 4 seconds
V3AuthNIntervalsValid 12
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
TestingMinExitFlagThreshold 0
TestingMinFastFlagThreshold 0
SocksPort 0
ExitRelay 1
IPv6Exit 1
ExitPolicy accept *:*
ExitPolicyRejectPrivate 0
ServerDNSResolvConfFile {dir}/resolv.conf
ServerDNSDetectHijacking 0
ServerDNSTestAddresses
ServerDNSSearchDomains 0
"""

_CLIENT = """
SocksPort unix:{dir}/socks WorldWritable ExtendedErrors IsolateSOCKSAuth
SocksPort 127.0.0.1:{socks_port} ExtendedErrors IsolateSOCKSAuth
ClientRejectInternalAddresses 0
"""

_ONION = """
SocksPort 0
HiddenServiceDir {dir}/onion
HiddenServicePort {port} {target}
Log [rend]info file {dir}/rend.log
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

    def ready(self, text: str = "Bootstrapped 100%") -> None:
        """Wait until the log tells that tor has come so far. LabError, with the log's end, if it does not."""
        try:
            until(lambda: text in self._log(), "not ready", BOOTSTRAP_S)
        except LabError as error:
            raise LabError(f"tor {self.name}: {error}; {self._last_lines()}") from None

    def ask(self, *commands: str) -> list[str]:
        """Give the control port commands, such as "SIGNAL NEWNYM"; return the lines of the answers.

        "GETINFO stream-status" returns a line for each stream. LabError if tor refuses one.
        """
        hello = f"AUTHENTICATE {self.cookie.read_bytes().hex()}"
        lines: list[str] = []
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(CONTROL_S)
            sock.connect(str(self.control))
            with sock.makefile("rw", newline="\r\n") as stream:
                for command in hello, *commands:
                    stream.write(f"{command}\r\n")
                    stream.flush()
                    answer = self._answer(stream)
                    lines += answer if command is not hello else []
        return lines

    def _answer(self, stream: Any) -> list[str]:
        """Read one reply of the control protocol (control-spec section 2.3), without its last line's OK."""
        lines: list[str] = []
        while line := stream.readline().rstrip("\r\n"):
            status, separator, text = line[:3], line[3:4], line[4:]
            if not status.startswith("2"):
                raise LabError(f"tor {self.name}: control: {line}")
            if separator == "+":
                lines.append(text)
                while (data := stream.readline().rstrip("\r\n")) not in (".", ""):
                    lines.append(data.removeprefix("."))
            elif separator == " ":
                return lines
            else:
                lines.append(text)
        raise LabError(f"tor {self.name}: control: the connection ended; {self._last_lines()}")

    def _log(self) -> str:
        assert self.process is not None
        if self.process.poll() is not None:
            raise LabError(f"ended with status {self.process.returncode}")
        return self.log.read_text() if self.log.exists() else ""

    def _last_lines(self) -> str:
        texts = [path.read_text() for path in (self.log, self.dir / "output") if path.exists()]
        lines = "\n".join(texts).strip().splitlines()[-LOG_LINES:]
        return "its last lines:\n" + "\n".join(lines)


class TorNetwork:
    """Authorities that are relays and exits, a name server for them, and clients.

    world: the host of the relays. site: the host for servers, with the addresses SITES.
    names: addresses by name, for the exits; `names.names` may be changed later. Returns from its making
    when the relays have a consensus and circuits.
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
        self._cables = 0
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
        offset = (math.ceil(time.time()) + FIRST_CONSENSUS_S) % VOTING_S  # tor votes by the wall clock
        for relay in self.relays:
            (relay.dir / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
            ports = {"or_port": OR_PORT, "dir_port": DIR_PORT}
            times = {"offset": offset, "interval": VOTING_S}
            self._start(relay, _AUTHORITY, **ports, **times, **_addresses(relay.name))
        for relay in self.relays:  # a client that asks before waits long before it asks again
            relay.ready()

    def client(self, host: Host, *, wait: bool = True, more: str = "") -> Tor:
        """Run a client in a host, which is joined to the world for it. more: further lines of its torrc.

        wait=False: return at once; ready() waits until it has built a circuit.
        """
        self._join(host)
        client = Tor(f"client-{host.name}", host, self.dir / f"client-{host.name}")
        self._start(client, _CLIENT + more, socks_port=SOCKS_PORT)
        if wait:
            client.ready()
        return client

    def onion(self, port: int = 80, target: str = f"{SITES[0]}:80") -> str:
        """Put an onion service before a server of the site, and return its name when it can be found."""
        if len(self.relays) < RELAYS_FOR_ONIONS:
            raise LabError(f"tor: {len(self.relays)} relays; an onion service takes {RELAYS_FOR_ONIONS}")
        service = Tor(f"onion-{port}", self.world, self.dir / f"onion-{port}")
        self._start(service, _ONION, port=port, target=target)
        service.ready()
        self._published(service)
        return (service.dir / "onion/hostname").read_text().strip()

    def _published(self, service: Tor) -> None:
        """Wait until both descriptors of a service, this period's and the next's, are with each relay."""
        rend = service.dir / "rend.log"
        stored = "finished with status 200"
        until(
            lambda: rend.exists() and rend.read_text().count(stored) >= 2 * len(self.relays),
            f"{service}",
            BOOTSTRAP_S,
        )

    def _start(self, tor: Tor, options: str, **values: object) -> None:
        text = _COMMON + options
        tor.start(text.format(name=tor.name, dir=tor.dir, authorities=self._authorities, **values))

    def _make_keys(self, relay: Tor) -> str:
        """Make the keys of an authority, and return the line by which the others know it."""
        data, v4 = relay.dir / "data", _addresses(relay.name)["v4"]
        certificate = data / "keys/authority_certificate"
        self.world.run(
            *("tor-gencert", "--create-identity-key", "--passphrase-fd", "0", "-m", "12"),
            *("-a", f"{v4}:{DIR_PORT}", "-i", data / "keys/authority_identity_key"),
            *("-s", data / "keys/authority_signing_key", "-c", certificate),
            input="none\n",
        )
        listed = self.world.run(
            *("tor", "--quiet", "--ignore-missing-torrc", "-f", relay.dir / "none", "--list-fingerprint"),
            *("--DataDirectory", data, "--ORPort", str(OR_PORT), "--Nickname", relay.name),
            *("--DirAuthority", f"none 127.0.0.1:1 {'f' * 40}"),
        ).stdout
        v3ident = re.search(r"^fingerprint (\w+)$", certificate.read_text(), re.MULTILINE)
        fingerprint = re.search(rf"^{relay.name} ([\w ]+)$", listed, re.MULTILINE)
        if v3ident is None or fingerprint is None:
            raise LabError(f"tor {relay.name}: no fingerprint in what tor says: {listed}")
        known = f"orport={OR_PORT} v3ident={v3ident[1]} {v4}:{DIR_PORT}"
        return f"DirAuthority {relay.name} {known} {fingerprint[1].replace(' ', '')}\n"

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

    def _join(self, host: Host) -> None:
        """Lay a cable between a host and the world, and route to the relays, which are all it may reach."""
        self._cables += 1
        inside, outside = f"10.99.{self._cables}.2", f"10.99.{self._cables}.1"
        self.lab.veth(host, "tor0", self.world, f"client{self._cables}")
        host.addr("tor0", f"{inside}/24")
        self.world.addr(f"client{self._cables}", f"{outside}/24")
        host.route("198.51.100.0/24", outside)


def _addresses(name: str) -> dict[str, str]:
    v4, v6 = RELAYS[name]
    return {"v4": v4, "v6": v6}
