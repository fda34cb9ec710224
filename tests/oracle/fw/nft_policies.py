"""Policies, each written twice from the same parts: as a rule file, and as rules of nftables."""

import re
from dataclasses import dataclass, field
from itertools import product

from nft_kernel import OUT_BIT, STACKED_BIT, mark_of
from nft_world import NET4, NET6, NET_MACS, PORTS, STRANGE_MACS, VLANS, VM4, VM6, VM_MACS

from vtl_tools.common.packet.address import format_mac

ICMP = {"echo-reply": (0, 129), "unreachable": (3, 1), "echo-request": (8, 128), "time-exceeded": (11, 3)}
ICMP_NUMBERS = [0, 3, 5, 8, 11, 13, 14]
ICMP6_NUMBERS = [1, 2, 3, 4, 128, 129, 130, 133, 134, 135, 136, 143]
ADDRESSES = [
    *VM4, *NET4, *VM6, *NET6, "10.0.0.0/24", "192.0.2.0/25", "192.0.2.128/25", "192.0.2.0/24",
    "192.0.2.1-192.0.2.130", "0.0.0.0/0", "2001:db8::/64", "2001:db8:1::/49", "2001:db8:1::/48", "::/0",
    "2001:db8:1::-2001:db8:1::ffff",
]  # fmt: skip
NUMBERS = [*map(str, PORTS), "80-443", "1024-65535", "0-52", "40000-40000"]
KINDS = [
    [], [], ["tcp"], ["tcp"], ["tcp"], ["udp"], ["udp"], ["tcp", "udp"], ["icmp"], ["icmp6"],
    ["icmp", "icmp6"], ["ip"], ["ip6"], ["protocol 47"], ["protocol 6"], ["protocol 1"], ["protocol 58"],
    ["arp"], ["tcp", "icmp"], ["ethertype 0x88b6"], ["ethertype 0x0800"], ["udp", "protocol 47", "icmp6"],
    ["ip6", "arp"],
]  # fmt: skip
NUMBER_OF = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}


@dataclass
class Rule:
    """The parts of a rule; None: not asked for. types: names, or numbers of the one version."""

    action: str
    direction: str = ""
    kinds: list = field(default_factory=list)
    src: list | None = None
    dst: list | None = None
    sport: list | None = None
    dport: list | None = None
    types: list | None = None
    codes: list | None = None
    vlan: list | None = None
    src_mac: list | None = None
    dst_mac: list | None = None

    @property
    def asks_of_ip(self):
        return bool(self.src or self.dst or self.kinds)

    # --- as a line of a rule file

    def line(self, random):
        def listed(values):
            return ", ".join(map(str, values))

        clauses = [
            f"{name} {listed(values)}"
            for name, values in (
                ("from", self.src), ("to", self.dst), ("source port", self.sport), ("port", self.dport),
                ("vlan", self.vlan), ("from mac", self.src_mac), ("to mac", self.dst_mac),
            )
            if values is not None
        ]  # fmt: skip
        random.shuffle(clauses)
        if self.types is not None:
            clauses.insert(0, f"type {listed(self.types)}")
            if self.codes is not None:
                clauses.append(f"code {listed(self.codes)}")
        head = [self.action, self.direction, listed(self.kinds) or random.choice(["", "any"])]
        return " ".join(word for word in (*head, *clauses) if word)

    # --- for nftables

    def of_ip(self, neighbours=False):
        """Return what stands in the chain of a direction, in table inet."""
        return [
            f"{' '.join([*matches, *self._common()])} {verdict}"
            for matches in self._matches(neighbours)
            for verdict in self._verdicts()
        ]

    def of_others(self):
        """Return what stands in the chain of a direction for frames that are no IP; ARP's first."""
        arps = [kind for kind in self.kinds if kind in ("arp", "ethertype 0x0806")]
        types = [kind.split()[1] for kind in self.kinds if kind.startswith("ethertype")]
        if self.src is not None or self.dst is not None:
            return [], []
        tail = " ".join([*self._common(), "accept" if self.action == "allow" else "drop"])
        others = [f"meta protocol {kind} {tail}" for kind in types] if self.kinds else [tail]
        return [tail for _ in arps], others

    def _common(self):
        out = []
        if (vlan := self._vlans()) is not None:
            marks = ", ".join(str(mark_of(v)) for v in vlan)
            out.append(f"meta mark & 0xffff {{ {marks} }}")
        for side, macs in ("saddr", self.src_mac), ("daddr", self.dst_mac):
            if macs is not None:
                out.append(f"ether {side} {{ {', '.join(macs)} }}")
        return out

    def _vlans(self):
        """Return the VLANs that match, of those that there are; None for all."""
        if self.vlan is None:
            return [None] if self.action == "allow" else None
        if self.vlan == ["any"]:
            return None
        out = [None] if "none" in self.vlan else []
        for text in self.vlan:
            if text != "none":
                low, _, high = text.partition("-")
                out += [v for v in VLANS if v is not None and int(low) <= v <= int(high or low)]
        return list(dict.fromkeys(out)) or [4000]

    def _verdicts(self):
        if self.action == "reject":
            return ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"]
        return ["accept"] if self.action == "allow" else ["drop"]

    def _matches(self, neighbours):
        """Yield what is asked of IP: for each version, protocol, address and port an own conjunction."""
        for kind, six in product(self.kinds or [""], (False, True)):
            protocol = self._protocol(kind, six)
            if protocol is None or (neighbours and (kind != "icmp6" or self.types is None)):
                continue
            asked = [
                [f"meta nfproto ipv{6 if six else 4} {protocol}"],
                _side(self.src, six, "saddr"),
                _side(self.dst, six, "daddr"),
                [""] if self.sport is None else [f"th sport {port}" for port in self.sport],
                [""] if self.dport is None else [f"th dport {port}" for port in self.dport],
                [""] if self.types is None else self._types(six),
            ]
            for matches in product(*asked):
                yield [match for match in matches if match]

    def _types(self, six):
        word = "icmpv6" if six else "icmp"
        types = [f"{word} type {ICMP[kind][six] if kind in ICMP else kind}" for kind in self.types]
        codes = [""] if self.codes is None else [f" {word} code {code}" for code in self.codes]
        return [kind + code for kind, code in product(types, codes)]

    @staticmethod
    def _protocol(kind, six):
        if kind in ("", "ip6" if six else "ip", "ethertype 0x86dd" if six else "ethertype 0x0800"):
            return ""
        if kind in ("tcp", "udp") or kind == ("icmp6" if six else "icmp"):
            return f"meta l4proto {NUMBER_OF[kind]}"
        return f"meta l4proto {kind.split()[1]}" if kind.startswith("protocol ") else None


def _side(addresses, six, name):
    """Return an expression for each address of a version, one that is empty for any."""
    if addresses is None:
        return [""]
    mine = [text for text in addresses if (":" in text) == six]
    return ["" if text.endswith("/0") else f"ip{'6' if six else ''} {name} {text}" for text in mine]


BASE = f"""
table bridge fw {{
%(bridge)s
chain forward {{ type filter hook forward priority 0; policy drop;
ether type 0x88b5 accept
meta mark & {STACKED_BIT} == 0 meta protocol {{ ip, ip6 }} accept
meta mark & {OUT_BIT} != 0 jump out
jump in
}}
}}
table inet fw {{
set heard {{ type ipv6_addr; flags dynamic; size 4096; }}
%(inet)s
chain forward {{ type filter hook forward priority 0; policy drop;
meta nfproto ipv6 ip6 hoplimit 255 icmpv6 type 133-136 icmpv6 code 0 jump neighbours
ct state established,related accept
ct state invalid meta l4proto != {{ icmp, ipv6-icmp }} drop
meta mark & {OUT_BIT} != 0 jump out
jump in
}}
}}
"""


@dataclass
class Policy:
    """The rules of a file."""

    rules: list
    text: str = ""

    @classmethod
    def of(cls, rules, random):
        made = cls(rules)
        lines = []
        for i, rule in enumerate(rules):
            line = rule.line(random)
            for name, clause in ("src", "from"), ("dport", "port"):
                values = getattr(rule, name)
                if values and random.random() < 0.3:  # by way of a set
                    lines.append(f"set @{name}{i} = {', '.join(values)}")
                    line = re.sub(
                        rf"(?<!source ){clause} {re.escape(', '.join(values))}(?= |$)",
                        f"{clause} @{name}{i}",
                        line,
                    )
            lines.append(line)
        made.text = "\n".join(lines) + "\n"
        return made

    @property
    def asks_macs(self):
        return any(rule.src_mac is not None or rule.dst_mac is not None for rule in self.rules)

    def _known_vlans(self):
        """Return what asks for a VLAN in which anything is allowed; "" for any."""
        vlans = [rule._vlans() for rule in self.rules if rule.action == "allow"]
        if None in vlans:
            return ""
        marks = {str(mark_of(vlan)) for some in ([None], *vlans) for vlan in some}
        return f"meta mark & 0xffff {{ {', '.join(marks)} }}"

    def tables(self):
        """Return tables `bridge fw` and `inet fw`."""
        bridge, inet = [], []
        known = f"{self._known_vlans()} accept"
        for way in "out", "in":
            rules = [rule for rule in self.rules if rule.direction in ("", way)]
            ip = [line for rule in rules for line in rule.of_ip()]
            nd = [line for rule in rules for line in rule.of_ip(neighbours=True)]
            arp = [line for rule in rules for line in rule.of_others()[0]]
            others = [line for rule in rules for line in rule.of_others()[1]]
            inet.append(_chain(way, [*ip, "drop"]))
            inet.append(_chain(f"nd_{way}", [*nd, known, "drop"]))
            bridge.append(_chain(f"arp_{way}", [*arp, known, "drop"]))
            bridge.append(_chain(way, [f"meta protocol arp jump arp_{way}", *others, "drop"]))
        stays = "ip6 daddr { ff02::/16, fe80::/10 }", "ip6 daddr @heard"
        neighbours = [
            *(f"meta mark & {OUT_BIT} == 0 {line}" for line in ("add @heard { ip6 saddr }", "jump nd_in")),
            *(f"meta mark & {OUT_BIT} != 0 icmpv6 type != 134 {where} jump nd_out" for where in stays),
        ]
        inet.append(_chain("neighbours", neighbours))
        return BASE % {"bridge": "\n".join(bridge), "inet": "\n".join(inet)}


def _chain(name, lines):
    body = "\n".join(lines)
    return f"chain {name} {{\n{body}\n}}"


def random_rule(random):
    """Return a rule that a file may have."""
    maybe = random.random
    rule = Rule(
        random.choices(["allow", "deny", "reject"], [6, 3, 2])[0], random.choice(["", "in", "out", "out"])
    )
    rule.kinds = list(random.choice(KINDS))
    off_ip = any(kind in ("arp", "ethertype 0x88b6") for kind in rule.kinds)
    versions = {4, 6}
    if rule.kinds:
        versions = set().union(*map(_versions, rule.kinds))
    for name in "src", "dst":
        if not off_ip and maybe() < 0.35:
            fits = [text for text in ADDRESSES if (6 if ":" in text else 4) in versions]
            some = random.sample(fits, random.choice([1, 1, 2, 3]))
            setattr(rule, name, some)
            versions &= {6 if ":" in text else 4 for text in some}
    if rule.kinds and all(kind in ("tcp", "udp") for kind in rule.kinds):
        if maybe() < 0.6:
            rule.dport = random.sample(NUMBERS, random.choice([1, 1, 2, 3]))
        if maybe() < 0.15:
            rule.sport = random.sample(NUMBERS, random.choice([1, 2]))
    if rule.kinds and all(kind in ("icmp", "icmp6") for kind in rule.kinds) and maybe() < 0.7:
        if len(rule.kinds) == 2 or maybe() < 0.5:
            rule.types = random.sample(list(ICMP), random.choice([1, 2]))
        else:
            numbers = ICMP_NUMBERS if rule.kinds == ["icmp"] else ICMP6_NUMBERS
            rule.types = [str(n) for n in random.sample(numbers, random.choice([1, 2, 3]))]
        if maybe() < 0.2:
            rule.codes = random.choice([["0"], ["0-3"], ["1", "3"], ["4"]])
    if maybe() < 0.2:
        rule.vlan = random.choice([["any"], ["none"], ["5"], ["none", "5-7"], ["0"], ["0-6"], ["7", "4094"]])
    if maybe() < 0.06:
        rule.src_mac = random.sample([format_mac(m) for m in (*VM_MACS, *NET_MACS, *STRANGE_MACS)], 2)
    if maybe() < 0.06:
        rule.dst_mac = random.sample([format_mac(m) for m in (*VM_MACS, *NET_MACS, *STRANGE_MACS)], 2)
    return rule


def _versions(kind):
    if kind in ("icmp", "ip", "ethertype 0x0800"):
        return {4}
    if kind in ("icmp6", "ip6"):
        return {6}
    return set() if kind in ("arp", "ethertype 0x88b6") else {4, 6}


def random_policy(random):
    """Return a policy of a few rules, which says what becomes of all else."""
    rules = [random_rule(random) for _ in range(random.randint(0, 8))]
    rules.append(Rule(random.choices(["allow", "deny", "reject"], [5, 4, 1])[0]))
    if rules[-1].action != "allow" and random.random() < 0.6:
        rules.insert(-1, Rule("allow", random.choice(["in", "out"]), ["tcp", "udp"][: random.randint(1, 2)]))
    return Policy.of(rules, random)
