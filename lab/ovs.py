"""Open vSwitch in a host of the lab: its userspace datapath, of which the kernel needs to know nothing.

Its daemons and its database live in the lab's directory, and end with the lab.
"""

import os
from pathlib import Path
from typing import Final

from lab.host import Host
from lab.netns import Lab
from lab.wait import until

_SCHEMA: Final = "/usr/share/openvswitch/vswitch.ovsschema"


class OpenVSwitch:
    """A bridge br0 of user space, and tunnels by way of an interface of the underlay."""

    def __init__(self, lab: Lab, host: Host, underlay: str, address: str) -> None:
        """Move an interface of the underlay into a bridge, which has its address, as OVS's users do."""
        self._host, self._dir = host, lab.dir / f"ovs-{host.name}"
        self._dir.mkdir()
        database, self._socket = self._dir / "conf.db", self._dir / "db.sock"
        host.run("ovsdb-tool", "create", database, _SCHEMA)
        self._daemon("ovsdb-server", database, f"--remote=punix:{self._socket}")
        until(self._socket.exists, f"{host.name}: ovsdb-server")
        self.set("--no-wait", "init")
        self._daemon("ovs-vswitchd", f"unix:{self._socket}", "--disable-system")
        self._bridge("underlay", underlay)
        host.addr("underlay", address)
        self._bridge("br0")

    def _daemon(self, name: str, *words: str | Path) -> None:
        files = (f"--unixctl={self._dir}/{name}.ctl", f"--log-file={self._dir}/{name}.log")
        with (self._dir / f"{name}.err").open("w") as log:
            self._host.popen(
                name, *words, *files, stderr=log, env={**os.environ, "OVS_RUNDIR": str(self._dir)}
            )

    def _bridge(self, name: str, *ports: str) -> None:
        self.set("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")
        for port in ports:
            self.set("add-port", name, port)

    def set(self, *words: str) -> None:
        """Run ovs-vsctl, which waits until the switch has done it."""
        self._host.run("ovs-vsctl", f"--db=unix:{self._socket}", *words)

    def plug(self, port: str) -> None:
        """Make an interface a port of br0."""
        self.set("add-port", "br0", port)

    def vxlan(self, vni: int, remote: str, port: int) -> None:
        """Add a tunnel to a peer. port: of both ends."""
        options = (f"options:remote_ip={remote}", f"options:key={vni}", f"options:dst_port={port}")
        self.set("add-port", "br0", "vx", "--", "set", "interface", "vx", "type=vxlan", *options)
