"""A name server of the lab: it knows the names that a test gives it, and no others."""

import logging
import socket
import threading
from collections.abc import Mapping

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import dns.rrset

from lab.host import Host

log = logging.getLogger(__name__)

TTL_S = 60
DATAGRAM = 4096
PORT = 53


class Names:
    """A name server on one UDP address of a host, as a thread of ours.

    names: addresses by name, IPv4 and IPv6 mixed; may be changed at any time. An address is known by the
    first name that has it. asked: every question so far, as ("A", "www.example").
    """

    def __init__(self, host: Host, address: str, names: Mapping[str, tuple[str, ...]]) -> None:
        self.names = dict(names)
        self.asked: list[tuple[str, str]] = []
        with host.enter():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, PORT))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"dns-{host.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more. Idempotent."""
        self._stopped.set()
        if self._thread.is_alive():
            wake = self._socket.getsockname()
            self._socket.sendto(b"", wake)
            self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            octets, client = self._socket.recvfrom(DATAGRAM)
            if self._stopped.is_set():
                return
            try:
                query = dns.message.from_wire(octets)
            except dns.exception.DNSException as error:
                log.debug("dns: %s: %s", client, error)
                continue
            self._socket.sendto(self.answer(query).to_wire(), client)

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        """Return the answer to a question about A, AAAA or PTR."""
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        for question in query.question:
            kind = dns.rdatatype.to_text(question.rdtype)
            name = question.name.to_text(omit_final_dot=True).lower()
            self.asked.append((kind, name))
            found = self._records()
            if name not in found:
                response.set_rcode(dns.rcode.NXDOMAIN)
            elif kind in found[name]:
                # The name as it was asked for: whoever asks in mixed case checks that (DNS 0x20).
                response.answer.append(
                    dns.rrset.from_text(question.name, TTL_S, "IN", kind, *found[name][kind])
                )
        return response

    def _records(self) -> dict[str, dict[str, list[str]]]:
        """Return every record as text, by name and by type."""
        records: dict[str, dict[str, list[str]]] = {}
        for name, addresses in list(self.names.items()):  # a test may change them meanwhile
            forward = records.setdefault(name.lower(), {})
            for address in addresses:
                forward.setdefault("AAAA" if ":" in address else "A", []).append(address)
                reverse = dns.reversename.from_address(address).to_text(omit_final_dot=True)
                records.setdefault(reverse, {}).setdefault("PTR", [f"{name}."])
        return records
