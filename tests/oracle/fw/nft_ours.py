"""The firewall in place of Linux: its stage, and the service."""

import json
import socket
import subprocess
from itertools import groupby

from nft_world import SENTINEL, came_out

from tests.running import BIN
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet.vnet import NONE, VNET
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.fw.files import pack
from vtl_tools.services.fw.parser import parse
from vtl_tools.services.fw.policy import Policy
from vtl_tools.services.fw.stage import Firewall


class Stage:
    """A firewall without links. why: of each packet, as what its drop was counted; "" if none was."""

    def __init__(self, text):
        self.stage = Firewall(Policy(parse("fw.rules", lambda name, octets: text.encode())))
        self._came = {True: [], False: []}
        for port, out in (0, False), (1, True):
            self.stage.out[port] = self._taker(out)
        self.why = {}
        self._now = 1000.0

    def _taker(self, out):
        def take(batch, now):
            self._came[out] += [bytes(frame)[VNET:] for frame in batch]

        return take

    def take(self, shot):
        """Judge a packet, and say whether anything came out for it."""
        before = len(self._came[shot.out])
        drops = self.stage.drops.copy()
        for frame in shot.frames:
            self.stage.on_batch(0 if shot.out else 1, Batch.of([bytearray(NONE + frame)]), self._now)
        self.why[shot.number] = next(iter(self.stage.drops - drops), "")
        self._now += 0.0001
        return len(self._came[shot.out]) > before

    def result(self):
        """Return what came out, as Kernel.judge does."""
        return came_out(self._came[True], self._came[False])


class Process:
    """vtl-fw between two interfaces. Its rules have to let SENTINEL pass both ways."""

    def __init__(self, lab):
        self._outside, middle = lab.host("outside", ipv6=False), lab.host("middle", ipv6=False)
        self._sockets = {}
        for out, port in (True, "vm"), (False, "net"):
            lab.veth(self._outside, port, middle, port)
            with self._outside.enter():
                sock = self._sockets[out] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
            sock.bind((port, 3))
            sock.settimeout(20)
            lab.defer(sock.close)
        rules = lab.dir / "fw.rules"
        rules.write_text("deny\n")
        self._control = lab.dir / "fw.sock"
        command = [
            BIN / "vtl-fw",
            "--iface",
            "vm",
            "--uplink",
            "net",
            "--rules",
            rules,
            "--spoofing",
            "--json",
        ]
        service = middle.popen(*command, "--control", self._control, stdout=subprocess.PIPE)
        assert json.loads(service.stdout.readline())["event"] == "ready"

    def load(self, text):
        """Take a policy, and forget all connections."""
        for body in "deny\n", text:
            with SealedFile.of(pack({"fw.rules": body.encode()})) as upload:
                control.ask(self._control, "reload", upload=upload, file="fw.rules")

    def judge(self, shots):
        """Return what came out where. Packets of both sides do not overtake each other."""
        came = {True: [], False: []}
        for out, run in groupby(shots, lambda shot: shot.out):
            for shot in run:
                for frame in shot.frames:
                    self._sockets[out].send(frame)
            self._until_sentinel(out, came)
        for out in True, False, True, False:  # what was held comes behind its batch
            self._until_sentinel(out, came)
        return came_out(came[True], came[False])

    def _until_sentinel(self, out, came):
        self._sockets[out].send(SENTINEL)
        while True:
            frame, (_, _, kind, _, _) = self._sockets[not out].recvfrom(1 << 16)
            if kind == socket.PACKET_OUTGOING:
                continue
            if frame == SENTINEL:
                return
            came[out].append(frame)
