"""The transports themselves, as far as they go without a network: absent libraries, sizes, refusals."""

import importlib.util
import subprocess
import sys

import pytest

from vtl_tools.common.errors import DeviceError, SpecError, VTLError
from vtl_tools.common.session.base import PathProfile
from vtl_tools.common.session.tcp import TCPTransport
from vtl_tools.services.udt.transport import srt
from vtl_tools.services.udt.transport.blocking import LibrarySizes
from vtl_tools.services.udt.transport.srt import SRTTransport
from vtl_tools.services.udt.transport.udt import UDTTransport

PROFILE = PathProfile()
LOADED = """
import sys
from vtl_tools.{0}.{1} import {2}Transport
sys.exit(any(name in sys.modules for name in ("udt4py", "cryptography")))
"""


def test_without_udt4py_one_line_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VTLError) as refused:
        UDTTransport(PROFILE).start()
    assert refused.value.lines == (
        "udt: udt4py is not installed; apt install libudt-dev, then pip install 'vtl-tools[udt]'",
    )


def test_without_libsrt_one_line_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srt, "_NAMES", ("libnone.so",))
    with pytest.raises(VTLError) as refused:
        SRTTransport(PROFILE).start()
    assert refused.value.lines == ("srt: libsrt is not installed; apt install libsrt1.5-gnutls",)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("services.udt.transport", "udt"),
        ("services.udt.transport", "srt"),
        ("common.session", "tcp"),
    ],
)
def test_a_transport_loads_no_library_before_it_is_used(package: str, name: str) -> None:
    subprocess.run([sys.executable, "-c", LOADED.format(package, name, name.upper())], check=True)


def test_udt_refuses_an_address_of_ipv6() -> None:
    with pytest.raises(SpecError, match="udt carries IPv4 only"):
        UDTTransport(PROFILE).listen(("::1", 7000))


def test_an_address_that_is_not_ours_is_an_error_of_one_line() -> None:
    with pytest.raises(DeviceError, match=r"192\.0\.2\.1:7000: cannot listen"):
        TCPTransport(PROFILE).listen(("192.0.2.1", 7000))


@pytest.mark.parametrize(
    ("mbit", "rtt_s", "packets"),
    [(1000, None, 14_166), (1000, 0.4, 52_799), (300, 0.4, 15_840), (300, 0.1, 8192), (1000, 10.0, 200_000)],
)
def test_a_window_is_one_and_a_half_products_of_rate_and_round_trip(
    mbit: int, rtt_s: float | None, packets: int
) -> None:
    assert LibrarySizes(PathProfile(rate=mbit * 125e3)).packets(rtt_s) == packets
