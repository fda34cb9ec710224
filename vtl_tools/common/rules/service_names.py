"""Ports by the names of their services, as the IANA registry has them.

A table of the tool and not the host's /etc/services: a rule file means the same on every host.
"""

from typing import Final

SERVICE_PORTS: Final = {
    "ftp-data": 20, "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "whois": 43, "domain": 53, "bootps": 67,
    "bootpc": 68, "tftp": 69, "http": 80, "kerberos": 88, "pop3": 110, "sunrpc": 111, "ntp": 123,
    "netbios-ns": 137, "netbios-dgm": 138, "netbios-ssn": 139, "imap": 143, "snmp": 161, "snmptrap": 162,
    "bgp": 179, "ldap": 389, "https": 443, "microsoft-ds": 445, "submissions": 465, "isakmp": 500,
    "dhcpv6-client": 546, "dhcpv6-server": 547, "rtsp": 554, "nntps": 563, "submission": 587,
    "ipp": 631, "ldaps": 636, "domain-s": 853, "rsync": 873, "ftps": 990, "imaps": 993, "pop3s": 995,
    "socks": 1080, "openvpn": 1194, "ms-sql-s": 1433, "radius": 1812, "radius-acct": 1813, "mqtt": 1883,
    "nfs": 2049, "git": 9418, "iscsi-target": 3260, "mysql": 3306, "ms-wbt-server": 3389, "stun": 3478,
    "svn": 3690, "ipsec-nat-t": 4500, "vxlan": 4789, "sip": 5060, "sips": 5061, "mdns": 5353, "llmnr": 5355,
    "postgresql": 5432, "amqps": 5671, "amqp": 5672, "rfb": 5900, "http-alt": 8080, "secure-mqtt": 8883,
}  # fmt: skip
"""The port of each name, for TCP and UDP alike. `syslog` is not here: port 514 of TCP is a remote shell's."""
