"""Short ways between VMs that share a LAN and do not know it (paper section 3.2). Sans-IO."""
