"""Links whose stations come from BGP EVPN (RFC 7432, RFC 8365), by the interface of a gobgpd beside us."""
