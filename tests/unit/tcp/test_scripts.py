"""Conversations after the catalogue of packetdrill: what a case is about, in our own words and numbers."""

from pathlib import Path

import pytest
from script import Script

SCRIPTS = sorted(Path(__file__).with_name("scripts").glob("*.talk"))


@pytest.mark.parametrize("start", [0.0, 100.0], ids=["at-0", "at-100"])  # differences of times are rounded
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_conversation_goes_as_it_is_written(path, version, start):
    Script(path.read_text(), version, start).run()


def test_a_conversation_that_goes_otherwise_fails():
    script = "+0 listen\n+0 < S 0:0(0) <mss 1000>\n+0 accept\n+0 > S. 0:0(0) ack {}\n"
    Script(script.format(1)).run()
    with pytest.raises(AssertionError, match="ack 2"):
        Script(script.format(2)).run()
    with pytest.raises(AssertionError, match="nothing was expected"):
        Script(script.rsplit("+0", 1)[0]).run()
