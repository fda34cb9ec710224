"""vtl-doctor: every need has a probe, and a use lacks what is not there."""

import pytest

from tests.cmd.tools import TOOLS
from vtl_tools.common.doctor import probes
from vtl_tools.common.doctor.needs import NEEDS, Use, lacking


def test_each_executable_but_the_doctor_has_needs() -> None:
    assert sorted(NEEDS) == [tool for tool in TOOLS if tool != "vtl-doctor"]
    assert all(any(use.main for use in uses) for uses in NEEDS.values())


def test_each_need_has_a_finding_and_each_finding_is_needed() -> None:
    found = [finding.name for finding in probes.probe_all()]
    assert len(found) == len(set(found))
    assert set(found) == {name for uses in NEEDS.values() for use in uses for name in use.needs}


def test_a_finding_that_is_not_ok_has_a_remedy_and_no_other_has() -> None:
    assert all(bool(finding.remedy) == (finding.state != "ok") for finding in probes.probe_all())


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"a": "ok", "b": "ok"}, ("ok", [])),
        ({"a": "ok", "b": "missing"}, ("missing", ["b"])),
        ({"a": "unknown", "b": "ok"}, ("unknown", ["a"])),
        ({"a": "unknown", "b": "missing"}, ("missing", ["a", "b"])),
    ],
)
def test_a_use_lacks_what_is_not_there(states: dict[str, str], expected: tuple[str, list[str]]) -> None:
    assert lacking(Use("use", ("a", "b")), states) == expected


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.18.44-fc", (6, 18)),
        ("5.10.0-28-amd64", (5, 10)),
        ("6.1-rc3", (6, 1)),
        ("7", (7, 0)),
        ("x", (0, 0)),
    ],
)
def test_releases_of_linux(release: str, expected: tuple[int, int]) -> None:
    assert probes.linux_version(release) == expected


def test_an_old_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "5.10.0-28-amd64")
    found = next(finding for finding in probes.probe_all() if finding.name == "Linux")
    assert (found.state, found.detail) == ("missing", "5.10.0-28-amd64")
    assert found.remedy.startswith("use Linux 5.16 or later")
