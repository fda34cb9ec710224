"""The raw fingerprints that nmap takes of a volunteer, with and without vortex-client, side by side.

usage: bench/vortex_nmap.py      (needs root, and nmap: tools/setup-bench)

The volunteer has a service of its own on port 22 for one scan. For the other, a honeypot with another TTL and
smaller buffers has it. A field of nmap's fingerprint that varies from scan to scan differs between two scans
of the volunteer itself, too: these fields are named `varies`.
"""

import re
import subprocess

from scene import BIN, quiet, say

from lab.netns import Host, Lab
from lab.wait import until

VOLUNTEER = "203.0.113.5"


def fingerprint(attacker: Host) -> dict[str, str]:
    """Return nmap's tests by name, as they are in its fingerprint, and what it says of the service."""
    words = ("nmap", "-n", "-Pn", "-sV", "-O", "-d", "-p", "22,24", "--osscan-guess", VOLUNTEER)
    said = attacker.run(*words, timeout=240).stdout
    joined = "".join(line.removeprefix("OS:") for line in said.splitlines() if line.startswith("OS:"))
    found = dict(re.findall(r"(\w+)\((.*?)\)", joined.replace("\n", "")))
    found.pop("SCAN", None)
    tests = {
        f"{name}.{field.partition('=')[0]}": field.partition("=")[2]
        for name, fields in found.items()
        for field in fields.split("%")
    }
    service = re.search(r"^22/tcp.*$", said, re.M)
    return tests | {"service": service[0].split("syn-ack", 1)[-1].strip() if service else "none"}


def serve(lab: Lab, host: Host) -> "subprocess.Popen[str]":
    key = lab.dir / "hostkey"
    if not key.exists():
        host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    daemon = quiet(host, "/usr/sbin/sshd", "-D", "-f", "/dev/null", "-h", key, "-o", "PidFile=none")
    until(lambda: ":22" in host.run("ss", "-ltn").stdout, "sshd")
    return daemon


def main() -> None:
    with Lab() as lab:
        attacker, volunteer, honeypot = (
            lab.host(name, ipv6=False) for name in ("attacker", "volunteer", "honeypot")
        )
        lab.veth(attacker, "eth0", volunteer, "eth0")
        lab.veth(volunteer, "worm", honeypot, "eth0")
        attacker.addr("eth0", "203.0.113.9/24")
        volunteer.addr("eth0", f"{VOLUNTEER}/24")
        honeypot.addr("eth0", "198.18.0.2/24")
        honeypot.run("ip", "route", "add", "default", "via", "198.18.0.1")
        honeypot.sysctl("net.ipv4.ip_default_ttl", 128)
        honeypot.sysctl("net.ipv4.tcp_rmem", "4096 87380 1048576")
        own = serve(lab, volunteer)
        say("two scans of the volunteer itself")
        first, second = fingerprint(attacker), fingerprint(attacker)
        own.terminate()
        own.wait()
        serve(lab, honeypot)
        command = [BIN / "vortex-client", "--iface", "eth0", "--backend", "worm", "--json", "--private"]
        command += ["--echo", "--control", lab.dir / "v.sock"]
        client = volunteer.popen(*command, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert "ready" in client.stdout.readline()
        say("a scan of the honeypot through vortex-client")
        through = fingerprint(attacker)
        client.terminate()
    for name in sorted(first.keys() | through.keys()):
        values = [found.get(name, "-") for found in (first, second, through)]
        note = "varies" if values[0] != values[1] else "" if values[0] == values[2] else "DIFFERS"
        print(f"{name:12} {values[0]:24} {values[1]:24} {values[2]:24} {note}")


if __name__ == "__main__":
    main()
