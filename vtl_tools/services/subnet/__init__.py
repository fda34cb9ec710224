"""vtl-subnet: shortcuts between VMs that share a LAN (paper section 3.2). Sans-IO except for the stage."""
