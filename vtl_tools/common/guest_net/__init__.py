"""A guest's network, as the service provides it: neighbours, router, DHCP, DNS. No I/O, no clock."""
