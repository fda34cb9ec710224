"""Where a guest's kernel comes from, and what is said when it cannot come."""

import pytest

from lab.cache import Kernel, guest_kernel
from lab.errors import LabError


def test_off_debian_one_line_says_what_to_provide(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VTL_CACHE", str(tmp_path))
    monkeypatch.delenv("VTL_GUEST_KERNEL", raising=False)
    monkeypatch.delenv("VTL_GUEST_MODULES", raising=False)
    with pytest.raises(
        LabError, match=r"no apt-get here.*VTL_GUEST_KERNEL=.* and VTL_GUEST_MODULES="
    ) as told:
        guest_kernel()
    assert "\n" not in str(told.value)


def test_a_kernel_of_ones_own_is_taken_as_it_is(monkeypatch, tmp_path):
    image, modules = tmp_path / "vmlinuz", tmp_path / "6.1.0"
    modules.mkdir()
    monkeypatch.setenv("VTL_GUEST_KERNEL", str(image))
    monkeypatch.setenv("VTL_GUEST_MODULES", str(modules))
    with pytest.raises(LabError, match="vmlinuz: no such file"):
        guest_kernel()
    image.touch()
    (modules / "modules.builtin").touch()
    assert guest_kernel() == Kernel(image, modules)


def test_half_a_kernel_is_refused(monkeypatch):
    monkeypatch.setenv("VTL_GUEST_KERNEL", "/boot/vmlinuz")
    monkeypatch.delenv("VTL_GUEST_MODULES", raising=False)
    with pytest.raises(LabError, match="one half"):
        guest_kernel()
