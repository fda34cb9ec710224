"""An ssh server in a host of the lab, with keys that are thrown away."""

from pathlib import Path

from lab.netns import Host, Lab
from lab.wait import until

OWN_RUN = """
mkdir "$1/run"
mount -n -t tmpfs none "$1/run"
mkdir -m 755 "$1/run/sshd"
mkdir -p "$1$2"
mount -n --bind "$2" "$1$2"
mount -n --move "$1/run" /run
"""
"""Gives a host a /run of its own, with a lab's directory in it: sshd insists on a directory there."""


def options(key: str | Path, port: int) -> list[str]:
    """What ssh is to be called with."""
    words = ["-i", str(key), "-p", str(port), "-F", "none"]
    known = "UserKnownHostsFile=/dev/null"
    for option in "StrictHostKeyChecking=no", known, "BatchMode=yes", "LogLevel=ERROR":
        words += ["-o", option]
    return words


def serve(lab: Lab, host: Host, name: str, port: int) -> Path:
    """Run a server on all addresses of a host; return the key of its user, root, when it listens."""
    directory = lab.dir / name
    directory.mkdir(mode=0o700)
    for key in "host", "user":
        host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key)
    (directory / "authorized").write_bytes((directory / "user.pub").read_bytes())
    config = directory / "sshd_config"
    config.write_text(
        f"HostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\nStrictModes no\nUsePAM no\n"
        f"PidFile none\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nUseDNS no\n"
        f"ListenAddress 0.0.0.0:{port}\nListenAddress [::]:{port}\n"
    )
    host.run("sh", "-euc", OWN_RUN, "sh", directory, lab.dir)
    log = directory / "log"
    server = host.popen("/usr/sbin/sshd", "-D", "-E", log, "-f", config)
    until(lambda: "listening" in (log.read_text() if log.exists() else "") or server.poll(), "sshd")
    return directory / "user"
