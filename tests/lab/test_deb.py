"""The Debian package in a clean Debian: installed, used with systemd, and removed without a trace.

The tests run in their order, in one Debian.
"""

import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.clean_root import CleanRoot
from lab.wait import until
from tests.cmd.test_libvirt_hook import XML
from tests.cmd.tools import ROOT, SERVICES, TOOLS

pytestmark = [pytest.mark.lab, pytest.mark.slow]

UNIT_TESTS = ("guest_net/test_dns_message.py", "guest_net/test_dns_map.py", "test_text.py")
"""Of the parts that use a library. Debian's versions are older than those of our environment."""
SETTINGS = {
    "vtl-bridge": "UPLINK=eth0",
    "vtl-freeze": "OPTIONS=--vm web",
    "vtl-fw": "UPLINK=eth0\nRULES=/etc/vtl/web.rules\nOPTIONS=--address 10.9.0.1",
    "vtl-split": "OPTIONS=--bandwidth 300mbit",
    "vtl-subnet": "DEFAULT=eth0\nDIRECT=lan0\nOPTIONS=--allow 10.2.0.0/16",
    "vtl-tor": "OPTIONS=--dhcp --no-check",
    "vtl-udt": "OPTIONS=--uplink eth0 --peer 10.99.0.0/16=10.9.0.2:7700 --key-file /etc/vtl/udt.key",
    "vtl-vnet": "OPTIONS=--uplink eth0",
    "vtl-wan": "UPLINK=eth0\nOPTIONS=--preset lan",
    "vtl-ack": "UPLINK=eth0",
    "vortex-backend": "LISTEN=127.0.0.1:7701",
    "vortex-client": "BACKEND=eth0",
}
MAC = {"vm": "52:54:00:00:00:02", "net": "52:54:00:00:00:01"}
INLINE = set(SERVICES) - {"vtl-freeze", "vortex-client"}
FORWARDING = {"vtl-ack", "vtl-bridge", "vtl-fw", "vtl-subnet", "vtl-udt", "vtl-vnet", "vtl-wan"}
DEVICE = "sys-subsystem-net-devices-vmnet1.device"


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanRoot]:
    """A clean Debian with the package of this tree, run by systemd."""
    build = subprocess.Popen([ROOT / "tools/deb"], stdout=subprocess.PIPE, text=True)
    packages = ("bash-completion", "iproute2", "iputils-ping")
    root = CleanRoot(tmp_path_factory.mktemp("debian") / "root", packages)
    try:
        built, _ = build.communicate()
        assert build.returncode == 0
        package = root.path / "root/vtl-tools.deb"
        package.write_bytes((ROOT / built.strip()).read_bytes())
        root.chroot("apt-get", "update", "-qq")
        install = ("apt-get", "install", "--yes", "-qq", "--no-install-recommends")
        root.chroot("env", "DEBIAN_FRONTEND=noninteractive", *install, "/root/vtl-tools.deb")
        package.unlink()
        root.boot()
        yield root
    finally:
        root.close()


@contextmanager
def line(debian: CleanRoot) -> Iterator[None]:
    """vm (10.9.0.1) - vmnet1 [the Debian] eth0 - net (10.9.0.2), and lan0 to nobody."""
    debian.run("ip", "link", "add", "lan0", "up", "type", "veth", "peer", "name", "lan1")
    for side, near, address in ("net", "eth0", "10.9.0.2/24"), ("vm", "vmnet1", "10.9.0.1/24"):
        debian.run("ip", "netns", "add", side)
        peer = ("peer", "name", "far", "address", MAC[side], "netns", side)
        debian.run("ip", "link", "add", near, "up", "type", "veth", *peer)
        debian.run("ip", "-n", side, "link", "set", "far", "up")
        debian.run("ip", "-n", side, "address", "add", address, "dev", "far")
    try:
        yield
    finally:
        for near in "vmnet1", "eth0", "lan0":
            debian.run("ip", "link", "delete", near)
        for side in "vm", "net":
            debian.run("ip", "netns", "delete", side)
        # systemd starts no unit with an interface that appears while the units still end.
        until(lambda: not units_of_the_tap(debian), "the end of all units")


@contextmanager
def enabled(debian: CleanRoot, unit: str) -> Iterator[None]:
    debian.run("systemctl", "enable", unit)
    try:
        yield
    finally:
        debian.run("systemctl", "disable", unit)


def units_of_the_tap(debian: CleanRoot) -> str:
    """The units that run, start or stop with vmnet1, as systemd lists them."""
    states = "--state=active,activating,deactivating,reloading"
    return debian.run("systemctl", "list-units", "--no-legend", states, "*vmnet1*")


def is_active(debian: CleanRoot, unit: str) -> bool:
    return debian.run("systemctl", "is-active", unit, check=False) == "active\n"


def reaches(debian: CleanRoot) -> bool:
    ping = ("ping", "-c1", "-W1", "-q", "10.9.0.2")
    return "1 received" in debian.run("ip", "netns", "exec", "vm", *ping, check=False)


def configure(debian: CleanRoot, service: str) -> None:
    where = debian.path / "etc/vtl"
    where.mkdir(exist_ok=True)
    (where / "web.rules").write_text("allow any\n")
    (where / "udt.key").write_text("a key that both modules share\n")
    (where / "clients").mkdir(exist_ok=True)
    (where / "clients/1-alice").write_text("a key of a client\n")
    (where / f"{service.removeprefix('vtl-')}-vmnet1").write_text(f"{SETTINGS[service]}\n")


def test_the_package_has_all_that_a_user_needs(debian: CleanRoot) -> None:
    for tool in TOOLS:
        assert debian.run(tool, "--help").startswith(f"Usage: {tool} ")
    files = debian.run("dpkg", "--listfiles", "vtl-tools").splitlines()
    version = debian.run("dpkg-query", "--show", "--showformat=${Version}", "vtl-tools")
    assert debian.run("vtl-fw", "--version") == f"vtl-fw, version {version} (compiled)\n"
    wanted = [
        *(f"man/man1/{tool}.1.gz" for tool in TOOLS),
        *("man/man5/vtl-fw.5.gz", "man/man7/vtl-tools.7.gz"),
        *(f"bash-completion/completions/{tool}" for tool in TOOLS),
        *(f"zsh/vendor-completions/_{tool}" for tool in TOOLS),
        *(f"fish/vendor_completions.d/{tool}.fish" for tool in TOOLS),
    ]
    assert [name for name in wanted if f"/usr/share/{name}" not in files] == []
    assert debian.run("getent", "passwd", "vtl").split(":")[5:] == ["/", "/usr/sbin/nologin\n"]


def test_the_compiled_modules_are_laid_out_by_a_profile(debian: CleanRoot) -> None:
    """Functions that connections call often are ahead of all others, whatever their modules."""
    (library,) = debian.path.glob("usr/lib/python3/dist-packages/vtl_tools/compiled__mypyc*.so")
    listed = subprocess.run(["nm", "--dynamic", library], capture_output=True, text=True, check=True).stdout
    at = {line.split()[-1]: int(line.split()[0], 16) for line in listed.splitlines() if " T " in line}
    often = "relay___Relay___settle", "endpoint___Endpoint___arrive", "tracker___Tracker___decide"
    seldom = "relay___Relay___list_flows", "endpoint___Endpoint___info", "tracker___Tracker___recall"
    assert max(at[f"CPyDef_{name}"] for name in often) < min(at[f"CPyDef_{name}"] for name in seldom)


def test_the_libraries_of_this_debian_will_do(debian: CleanRoot) -> None:
    # The path of our own libraries comes last: pytest is there, what Debian has is not taken from there.
    run = "import sys; sys.path.append('/mnt'); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = (
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=quick",
        "-k",
        "not foreign_octets",
        "--rootdir=/srv",
        "-c",
        "/srv/pyproject.toml",
    )
    tests = [f"/srv/tests/unit/{name}" for name in UNIT_TESTS]
    binds = {ROOT: "/srv", Path(sysconfig.get_path("purelib")): "/mnt"}
    assert " passed" in debian.chroot("python3", "-B", "-c", run, *options, *tests, binds=binds)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_in_its_sandbox_with_the_interface_and_ends_with_it(
    debian: CleanRoot, service: str
) -> None:
    configure(debian, service)
    unit = f"{service}@vmnet1"
    with enabled(debian, unit):
        with line(debian):
            until(lambda: is_active(debian, unit), f"the start of {unit}")
            assert f'"service": "{service}"' in debian.run(service, "status", "--json")
            assert ("vmnet1" in debian.run("vtl-guard", "list")) is (service in INLINE)
            if service in FORWARDING:
                until(lambda: reaches(debian), "the network")
            pid = debian.run("systemctl", "show", "--property=MainPID", unit)
            debian.run("systemctl", "reload", unit)
            assert f'"service": "{service}"' in debian.run(service, "status", "--json")
            assert debian.run("systemctl", "show", "--property=MainPID", unit) == pid
        until(lambda: not is_active(debian, unit), f"the end of {unit}")


def test_a_firewall_that_does_not_start_leaves_the_guest_cut_off_and_says_why(debian: CleanRoot) -> None:
    configure(debian, "vtl-fw")
    (debian.path / "etc/vtl/web.rules").write_text("allow all\n")
    with line(debian):
        until(lambda: "plugged" in debian.run("systemctl", "list-units", DEVICE), "the interface")
        debian.run("systemctl", "start", "vtl-fw@vmnet1", check=False)
        assert not is_active(debian, "vtl-fw@vmnet1")
        assert is_active(debian, "vtl-guard@vmnet1")
        assert "web.rules:1:" in debian.run("journalctl", "--unit", "vtl-fw@vmnet1")
        (debian.path / "etc/vtl/web.rules").write_text("allow any\n")
        debian.run("systemctl", "start", "vtl-fw@vmnet1")
        until(lambda: reaches(debian), "the network")


def test_the_firewall_of_a_guest_starts_before_it_by_libvirts_hook(debian: CleanRoot) -> None:
    configure(debian, "vtl-fw")
    settings = debian.path / "etc/vtl/vm/web"
    settings.mkdir(parents=True)
    (debian.path / "etc/vtl/fw-vmnet1").rename(settings / "fw")
    (debian.path / "root/web.xml").write_text((XML % "").replace("vnet0", "vmnet1"))
    hook = "exec /usr/share/vtl-tools/libvirt/vtl-services web %s - </root/web.xml"
    with line(debian):
        assert debian.run("sh", "-c", hook % "start begin") == ""
        assert is_active(debian, "vtl-fw@vmnet1")
        assert MAC["vm"] in debian.run("vtl-fw", "status", "--json")
        debian.run("sh", "-c", hook % "stopped end")
        until(lambda: not is_active(debian, "vtl-fw@vmnet1"), "the end of the firewall")
        assert is_active(debian, "vtl-guard@vmnet1")


def test_removed_and_purged_it_leaves_nothing(debian: CleanRoot) -> None:
    configure(debian, "vtl-bridge")
    with line(debian):
        debian.run("systemctl", "enable", "--now", "vtl-bridge@vmnet1")
        assert reaches(debian)
        debian.run("dpkg", "--remove", "vtl-tools")
        assert not debian.run("pgrep", "--full", "vtl-", check=False)
        assert not (debian.path / "usr/lib/python3/dist-packages/vtl_tools").exists()
        assert (debian.path / "etc/vtl/bridge-vmnet1").exists()
        debian.run("dpkg", "--purge", "vtl-tools")
    left = debian.run("find", "/", "-xdev", "-name", "*vtl*").split()
    assert left == []
    for name in "passwd", "group", "shadow":
        assert "vtl" not in (debian.path / "etc" / name).read_text()
