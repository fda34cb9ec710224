"""The wheel, installed into an empty environment, has all that a user needs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import setup
from tests.cmd.tools import ROOT, TOOLS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NOT_SOURCES = (".*", "build", "dist", "*.egg-info", "__pycache__")


def run(*command: str | Path) -> str:
    """Run a command away from the tree, so that nothing is imported from there; return its output."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"MYPYC_OPT_LEVEL": "0", "VTL_PROFILE": "0"}  # quick to build; test_deb.py has a profile
    ran = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built by way of a source archive with the environment's own setuptools."""
    where = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, where / "tree", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", where, where / "tree")
    (found,) = where.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_of_the_tree_around_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name and ".data/" not in name}
    assert tops == {"vtl_tools"}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "vtl_tools").rglob("*.py")}
    in_it = {name for name in names if name.startswith("vtl_tools/") and not name.endswith(".so")}
    assert ours | {"vtl_tools/py.typed"} == in_it


def test_the_hot_modules_of_the_wheel_are_compiled(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    compiled = {f"{name.partition('.')[0]}.py" for name in names if name.endswith(".so")}
    assert compiled == {*setup.hot_modules(), "vtl_tools/compiled__mypyc.py"}


def test_the_compiler_needs_none_of_our_libraries(tmp_path: Path) -> None:
    """As in the environment that pip builds in, which has mypy and setuptools only."""
    shutil.copytree(ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    venv.create(tmp_path / "venv")
    code = (
        f"import os, sys; os.chdir({str(tmp_path / 'tree')!r})\n"
        f"sys.path += ['', {sysconfig.get_path('purelib')!r}]  # which mypy does not look at\n"
        "import setup; print(len(setup.extensions()))"
    )
    assert int(run(tmp_path / "venv/bin/python", "-c", code).split()[-1]) == len(setup.hot_modules()) + 1


def test_a_machine_without_a_compiler_builds_what_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup.reason_for_pure() is None
    monkeypatch.setenv("PATH", "/nonexistent")
    assert str(setup.reason_for_pure()).startswith("no C compiler")
    monkeypatch.setenv("VTL_PURE", "1")
    assert setup.extensions() == []


def test_a_compiler_that_cannot_count_builds_without_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VTL_PROFILE", raising=False)
    assert setup.reason_for_no_profile() is None
    monkeypatch.setattr(setup, "COUNT", ("-fno-such-option",))
    assert str(setup.reason_for_no_profile()).startswith("the C compiler is not gcc")
    monkeypatch.setenv("VTL_PROFILE", "0")
    assert setup.reason_for_no_profile() == "VTL_PROFILE=0"


def test_the_wheel_tells_the_readme_the_licence_and_the_dependencies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    assert (ROOT / "README.md").read_text() in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    always = {line.split()[1].partition(">")[0] for line in needed if "extra ==" not in line}
    assert always == {"click", "cryptography", "dnspython", "pysocks", "scapy"}


def test_an_empty_environment_with_the_wheel_runs_every_executable(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    run(home / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    for tool in TOOLS:
        assert run(home / "bin" / tool, "--help").startswith(f"Usage: {tool} ")
        assert run(home / "bin" / tool, "--version").endswith(" (compiled)\n")
        assert (home / f"share/man/man1/{tool}.1").read_text() == (ROOT / f"man/{tool}.1").read_text()
    for page in "vtl-fw.5", "vtl-tools.7":
        assert (home / f"share/man/man{page[-1]}" / page).read_text() == (ROOT / "man" / page).read_text()
    installed = {str(path.relative_to(home)) for path in home.rglob("*")}
    for tool in TOOLS:
        assert f"share/bash-completion/completions/{tool}" in installed
        assert f"share/zsh/site-functions/_{tool}" in installed
        assert f"share/fish/vendor_completions.d/{tool}.fish" in installed
    for unit in (ROOT / "contrib/systemd").iterdir():
        assert f"lib/systemd/system/{unit.name}" in installed
    assert "lib/sysusers.d/vtl-tools.conf" in installed
    assert os.access(home / "share/vtl-tools/libvirt/vtl-services", os.X_OK)
    where = run(home / "bin/python", "-c", "import vtl_tools; print(vtl_tools.__file__)")
    assert where.startswith(str(home))
