"""The language of packet conditions: the rules of vtl-fw, and the options that choose flows."""
