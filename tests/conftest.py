"""Fixtures that every kind of test may use."""

import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from lab.netns import Lab

# A shell has commands in the background ignore SIGINT, and programs inherit that: a test that sends it hangs.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("quick", max_examples=20)  # `make check`; a test may ask for more


def pytest_configure() -> None:
    """Refuse to test compiled modules that are older than their sources."""
    for module in (ROOT / "vtl_tools").rglob("*.so"):
        source = module.with_name(f"{module.name.partition('.')[0]}.py")
        if source.exists() and source.stat().st_mtime > module.stat().st_mtime:
            pytest.exit(f"{source} is newer than what runs: 'make compiled' or 'make pure'", 2)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A laboratory of hosts, wires and guests that ends with the test. Fails without root."""
    with Lab() as lab:
        yield lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the guests of a failed test printed."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        for guest in lab.guests:
            report.sections.append((f"guest {guest.name}", guest.report()))
    return report
