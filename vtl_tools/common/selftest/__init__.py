"""What 'vtl-tor selftest' does: a real service between a guest and a world of ours: nothing may leak."""
