"""One target under atheris: python -m tests.fuzz.child TARGET [OPTION OF LIBFUZZER]... DIRECTORY..."""

import importlib
import logging
import sys
from typing import Final

import atheris

PARSERS: Final = {"dns": ["dns"]}
"""Packages of others that are instrumented as well, where they are what reads the octets."""


def main() -> None:
    """Fuzz until an option says to stop; the exit status is libFuzzer's, 0 if nothing was found."""
    name, *options = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["vtl_tools", *PARSERS.get(name, ())]):
        target = importlib.import_module(f"tests.fuzz.targets.{name}")
    atheris.Setup([sys.argv[0], *options], target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
