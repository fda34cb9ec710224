"""VTL tools: transparent network services for virtual machines, added from outside the machine."""
