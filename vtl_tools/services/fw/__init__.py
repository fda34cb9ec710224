"""The firewall, vtl-fw: rules as text and compiled, and the table of connections.

Sans-IO but for the stage.
"""
