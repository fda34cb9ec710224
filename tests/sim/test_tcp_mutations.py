"""The hostile peer finds what is broken on purpose: a machine that finds nothing proves nothing."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tcp_hostile import Hostile

from vtl_tools.common.tcp import acceptance, arrival, endpoint, output, prediction, timeouts
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.queue import SendQueue
from vtl_tools.common.tcp.rcv import Receiver
from vtl_tools.common.tcp.reassembly import ReassemblyQueue
from vtl_tools.common.tcp.snd import Sender
from vtl_tools.common.tcp.tcb import NEVER, TCB

BUDGET = settings(
    max_examples=3000, stateful_step_count=40, deadline=None, derandomize=True, database=None,
    report_multiple_bugs=False, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip


def after(owner, name, then):
    """Let a function run, then do something to its arguments."""
    real = getattr(owner, name)

    def broken(*args):
        result = real(*args)
        then(*args)
        return result

    return owner, name, broken


def instead(owner, name, broken):
    return owner, name, broken


def changed(owner, name, change):
    """Let a function run, and change what it returns."""
    real = getattr(owner, name)
    return owner, name, lambda *args: change(real(*args))


def arguments(owner, name, change):
    """Change what a function is given."""
    real = getattr(owner, name)
    return owner, name, lambda *args: real(*change(*args))


def put(name, value):
    return lambda it, *_: setattr(it, name, value)


def take_twice(rcv, start, data):
    rcv._append(data)
    return True


def take_fin_at_once(rcv):
    if rcv.fin is None:
        return False
    rcv.nxt += 1
    rcv.fin = rcv.nxt - 1
    return True


def never(_):
    return NEVER


POSITION = Sender.position
MUTATIONS = {
    "ack-off-by-one": instead(
        Receiver, "rcv_nxt", property(lambda r: (r.irs + r.nxt + (r.nxt > 1)) & 0xFFFFFFFF)
    ),
    "peers-window-ignored": arguments(Sender, "offered", lambda s, w, seq, ack: (s, 1 << 20, seq, ack)),
    "peers-window-one-more": arguments(Sender, "offered", lambda s, w, seq, ack: (s, w + 1, seq, ack)),
    "reassembly-unbounded": after(ReassemblyQueue, "__init__", put("_most", 1 << 30)),
    "receive-buffer-unbounded": after(Receiver, "__init__", put("_buffer", 1 << 20)),
    "send-buffer-unbounded": instead(Sender, "room", property(lambda s: 1 << 20)),
    "window-unscaled": arguments(Receiver, "window", lambda r, shift: (r, 0)),
    "window-of-nothing-is-told": instead(Receiver, "_worth", property(lambda r: 0)),
    "no-retransmission-timer": after(TCB, "arm", put("retransmit_at", NEVER)),
    "no-user-timeout": instead(timeouts, "_give_up_at", never),
    "no-fin-wait-2-timeout": instead(timeouts, "_silent_at", never),
    "no-keep-alive": instead(timeouts, "_keep_alive_at", never),
    "time-wait-for-ever": after(TCB, "wait", put("time_wait_at", NEVER)),
    "delayed-ack-forgotten": after(arrival, "_text", put("delayed_at", NEVER)),
    "data-taken-out-of-order": instead(Receiver, "take", take_twice),
    "fin-before-its-data": instead(Receiver, "finish", take_fin_at_once),
    "sack-of-what-did-not-come": changed(Receiver, "blocks", lambda found: [(a, b + 1) for a, b in found]),
    "checksum-not-checked": instead(endpoint, "is_intact", lambda frame: True),
    "old-timestamps-taken": instead(acceptance, "_HALF", 0),
    "echo-of-what-was-refused": arguments(
        arrival,
        "is_acceptable",
        lambda tcb, seg, seq, now: (
            (tcb.timestamps and seg.stamps and put("ts_recent", seg.stamps[0])(tcb)) or (tcb, seg, seq, now)
        ),
    ),
    "reset-of-a-reset": arguments(
        arrival, "reset", lambda tcb, seg: (tcb, setattr(seg, "flags", seg.flags & ~4) or seg)
    ),
    "other-octets": arguments(SendQueue, "views", lambda q, a, b: (q, max(1, a - 1), max(1, a - 1) + b - a)),
    "acknowledged-octets-again": after(
        prediction, "advance", lambda tcb, ack, now: put("una", max(ack - 1, 1))(tcb.snd)
    ),
    "ack-of-the-unsent-taken": instead(
        Sender, "position", lambda s, seq: min(POSITION(s, seq), s.max) if s.max > 1 else POSITION(s, seq)
    ),
    "segments-too-large": after(Sender, "start", lambda s, mss: setattr(s, "mss", s.mss + 1)),
    "fin-forgotten": changed(Sender, "_piece", lambda piece: piece._replace(fin=False)),
    "urgent-pointer-forgotten": after(Endpoint, "write", lambda end, *_, **__: put("up", 0)(end.snd)),
    "urgent-pointer-ignored": instead(Receiver, "urgent", 0),
    "urgent-super-segments": changed(Sender, "_whole", lambda octets: octets * 2),
    "all-at-once-is-not": after(output, "acknowledge", lambda tcb, now: put("ack_now", True)(tcb)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_broken_is_found(name, monkeypatch):
    monkeypatch.setattr(*MUTATIONS[name])
    with pytest.raises(Exception):  # noqa: B017 - an assertion of the model, or a crash
        run_state_machine_as_test(Hostile, settings=BUDGET)
