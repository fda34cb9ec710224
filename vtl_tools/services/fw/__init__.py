"""Sans-IO: the rules of a firewall in text and compiled, and the connections that it follows."""
