"""What a rule file costs: to load, to judge, to reload; and what a connection costs in time and memory.

usage: bench/rules.py [--json] [--rounds N]                     (one processor, no root, some seconds)
"""

import argparse
import gc
import json
import tracemalloc
from random import Random
from time import process_time

from vtl_tools.common.firewall.fields import Fields
from vtl_tools.common.firewall.flow import pack
from vtl_tools.common.firewall.parser import parse
from vtl_tools.common.firewall.policy import Policy
from vtl_tools.common.firewall.rule import IN, OUT
from vtl_tools.common.firewall.tracker import Tracker
from vtl_tools.common.packet import build, ether, ip, tcp

KNOWN = 5000
PEER = b"\xc0\x00\x02\x01"
MACS = {"src_mac": b"\2" * 6, "dst_mac": b"\4" * 6}


def rule_file(rules: int, rng: Random) -> bytes:
    """Rules that each ask for another network and port, and nothing that the others ask for."""
    lines = [
        f"allow out tcp to {rng.randrange(1, 223)}.{rng.randrange(256)}.{rng.randrange(256)}.0/24"
        f" port {rng.randrange(1, 65536)}"
        for _ in range(rules - 2)
    ]
    return "\n".join([*lines, "allow out tcp to 192.0.2.0/24", "deny any"]).encode()


def load(data: bytes) -> tuple[Policy, float, float]:
    """The policy, and milliseconds to parse and to compile."""
    began = process_time()
    ruleset = parse("bench.rules", lambda _, octets: data[:octets])
    parsed = process_time()
    policy = Policy(ruleset)
    compiled = process_time()
    gc.collect()
    gc.freeze()  # as a service does with what stays
    return policy, (parsed - began) * 1e3, (compiled - parsed) * 1e3


def judge_us(policy: Policy, rng: Random, packets: int = 5000) -> float:
    """Microseconds to judge the first packet of a connection to anywhere."""
    asked = [
        Fields(ether.IPV4, ip.TCP, b"\x0a\0\0\5", rng.randbytes(4), 40000, rng.randrange(65536))
        for _ in range(packets)
    ]
    began = process_time()
    for fields in asked:
        policy.judge(OUT, fields)
    return (process_time() - began) / packets * 1e6


def syn(number: int, flags: int = tcp.SYN, seq: int = 1, ack: int = 0, payload: bytes = b"") -> bytearray:
    """A segment of the VM, each number of another connection."""
    here = (0x0A00_0000 + (number >> 14)).to_bytes(4, "big")
    return build.tcp(
        **MACS, src=here, dst=PEER, sport=1024 + (number & 0x3FFF), dport=80, seq=seq, ack=ack, flags=flags,
        window=60000, payload=payload,
    )  # fmt: skip


def answer(number: int) -> bytearray:
    """The peer's SYN-ACK."""
    here = (0x0A00_0000 + (number >> 14)).to_bytes(4, "big")
    return build.tcp(
        **MACS, src=PEER, dst=here, sport=80, dport=1024 + (number & 0x3FFF), seq=7, ack=2,
        flags=tcp.SYN | tcp.ACK, window=60000,
    )  # fmt: skip


def flows_us(policy: Policy, flows: int) -> tuple[Tracker, float, float]:
    """A tracker with so many connections; microseconds for a new one, and for a packet of a known one."""
    tracker = Tracker(policy)
    frames = [syn(i) for i in range(flows)]
    began = process_time()
    for frame in frames:
        tracker.receive(frame, OUT, 1.0)
    new = (process_time() - began) / flows * 1e6
    assert len(tracker.flows) == flows
    for i in range(flows):
        tracker.receive(answer(i), IN, 1.0)
        tracker.receive(syn(i, tcp.ACK, 2, 8), OUT, 1.0)
    frames = [syn(flows - 1, tcp.ACK, 2 + i, 8, b"x") for i in range(KNOWN)]
    known = []
    for start in range(0, KNOWN, KNOWN // 5):
        began = process_time()
        for frame in frames[start : start + KNOWN // 5]:
            assert tracker.receive(frame, OUT, 2.0).why == "known"
        known.append((process_time() - began) / (KNOWN // 5) * 1e6)
    return tracker, new, min(known)


def flow_octets(policy: Policy, flows: int) -> float:
    """Octets of memory for each open connection, packed as it is when quiet; all of the table counted."""
    tracker = Tracker(policy)
    gc.collect()
    tracemalloc.start()
    for i in range(flows):
        tracker.receive(syn(i), OUT, 1.0)
        tracker.receive(answer(i), IN, 1.0)
        tracker.receive(syn(i, tcp.ACK, 2, 8), OUT, 1.0)
    for flow in tracker.flows:
        if isinstance(flow.ends, tuple):
            flow.ends = pack(flow.ends)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / flows


def measure(rounds: int) -> dict[str, object]:
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for turn in range(rounds):
        rng = Random(turn)
        for rules in 10, 1000, 10_000:
            policy, parsed, compiled = load(rule_file(rules, rng))
            note(f"parse_ms_{rules}", parsed)
            note(f"compile_ms_{rules}", compiled)
            note(f"judge_us_{rules}", judge_us(policy, rng))
            tracker, new, known = flows_us(policy, 1000)
            note(f"new_flow_us_{rules}", new)
            note(f"known_flow_us_{rules}", known)
        tracker, _, _ = flows_us(policy, 10_000)
        policy, parsed, compiled = load(rule_file(10_000, rng))
        began = process_time()
        tracker.replace(policy)
        note("rejudge_ms", (process_time() - began) * 1e3)
        note("reload_ms", (process_time() - began) * 1e3 + parsed + compiled)
    least = {name: round(min(values), 2) for name, values in figures.items()}  # the others were disturbed
    for name in "judge", "new_flow", "known_flow":
        least[f"{name}_ratio"] = round(least[f"{name}_us_10000"] / least[f"{name}_us_10"], 2)
    return {**least, "flow_octets": round(flow_octets(policy, 100_000))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    gc.freeze()
    figures = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
