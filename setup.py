"""Writes the shells' completion of each executable, and has mypyc compile the hot modules.

All else is in setup.cfg. VTL_PURE=1 compiles nothing, and so does a machine without a C compiler.
VTL_PROFILE=0 compiles without a profile, in half the time.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from itertools import chain
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FILES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}
"""The name of an executable's file, as each shell finds it."""

HOT = (
    "common/device/batch.py", "common/device/gathered.py", "common/device/packet_io.py",
    "common/model/tcp_arrival.py", "common/model/tcp_end.py",
    "common/packet/address.py", "common/packet/checksum.py", "common/packet/offload.py",
    "common/packet/options.py", "common/packet/quick.py", "common/packet/seq.py",
    "common/relay/*.py",
    "common/tcp/**/*.py", "common/runtime/pump.py",
    "services/fw/connections.py", "services/fw/flow.py", "services/fw/policy.py", "services/fw/table.py",
    "services/fw/tcp_flow.py", "services/fw/tracker.py",
    "services/freeze/answers.py", "services/freeze/connection.py", "services/freeze/freezer.py",
    "services/freeze/headers.py", "services/freeze/peer_evidence.py", "services/freeze/table.py",
    "services/ack/deputy.py", "services/split/connector.py", "services/split/destinations.py",
    "services/split/tuning.py", "services/tor/name_server.py",
    "services/udt/transport/base.py", "services/udt/transport/flow.py",
    "services/wan/bottleneck.py", "services/wan/codel.py", "services/wan/loss.py", "services/wan/path.py",
)  # fmt: skip
"""The files on the path of each segment, below vtl_tools, and those of classes that inherit from theirs, as a
compiled class has no interpreted heirs. They run as they are, too, several times slower."""

LIBRARY = "vtl_tools.compiled"
"""The library with the code of all of them, but for the ending; a small one for each module points to it."""
COUNT = ("-fprofile-generate", "-fprofile-update=prefer-atomic")
"""gcc's options to count what is executed."""
USE = (
    "-fprofile-use", "-fprofile-correction", "-fprofile-partial-training",
    "-Wno-missing-profile", "-Wno-error=coverage-mismatch",
)  # fmt: skip
"""And to arrange code by such counts; what the training did not execute is made as without a profile."""
TRAINING_S = 600


def write_completions(tree: Path, where: Path) -> None:
    """Write a file for each shell and executable below `where`."""
    config = ConfigParser()
    config.read(tree / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    for tool in (line.partition("=")[0].strip() for line in lines):
        name = tool.replace("-", "_")
        words = {"@TOOL@": tool, "@FUNCTION@": f"_{name}", "@VARIABLE@": f"_{name}_COMPLETE".upper()}
        for shell, pattern in FILES.items():
            text = (tree / "contrib/completion" / shell).read_text()
            for word, value in words.items():
                text = text.replace(word, value)
            path = where / shell / pattern.format(tool)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def hot_modules() -> list[str]:
    """Return the paths of the files that are compiled, from this file's folder."""
    tree = Path(__file__).parent
    found = (path for pattern in HOT for path in (tree / "vtl_tools").glob(pattern))
    return sorted(str(path.relative_to(tree)) for path in found if path.name != "__init__.py")


def reason_for_pure() -> str | None:
    """Return why nothing can be compiled here."""
    if os.environ.get("VTL_PURE") == "1":
        return "VTL_PURE=1"
    if "VTL_MYPYC" in os.environ:  # a folder that has it, where the environment's own Python has not
        sys.path.append(os.environ["VTL_MYPYC"])
    try:
        import mypyc.build  # noqa: F401
    except ImportError:
        return "mypy is not installed"
    with tempfile.TemporaryDirectory() as where:
        include = f"-I{sysconfig.get_path('include')}"
        if not compiles("#include <Python.h>\n", Path(where), include, "-c"):
            return "no C compiler that finds Python.h (Debian: gcc, python3-dev)"
    return None


def reason_for_no_profile() -> str | None:
    """Return why the compiler cannot count what is executed: by a program that does."""
    if os.environ.get("VTL_PROFILE") == "0":
        return "VTL_PROFILE=0"
    with tempfile.TemporaryDirectory() as where:
        if compiles("int main(void) { return 0; }\n", Path(where), *COUNT, *USE[1:]):
            subprocess.run([Path(where, "a.o")], cwd=where, check=False)
        return None if [*Path(where).glob("*.gcda")] else "the C compiler is not gcc, or has no libgcov"


def compiles(text: str, where: Path, *options: str) -> bool:
    """Compile a text to the file a.o of a folder; tell whether that is possible."""
    source = where / "a.c"
    source.write_text(text)
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    command = [*compiler, *options, source, "-o", source.with_suffix(".o")]
    try:
        return subprocess.run(command, cwd=where, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def extensions() -> list[Extension]:
    """Return the compiled modules; none where they cannot be made."""
    reason = reason_for_pure()
    if reason is not None:
        tell(f"built without compiled modules: {reason}")
        return []
    from mypyc.build import mypycify

    # Libraries are not there in pip's own environment, and their types are not needed: `make lint` checks.
    options = ["--config-file=", "--ignore-missing-imports"]
    optimized = os.environ.get("MYPYC_OPT_LEVEL", "2")  # 3 gains nothing measurable
    made: list[Extension] = mypycify(
        [*options, *hot_modules()], group_name=LIBRARY, multi_file=True, opt_level=optimized
    )
    for extension in made:
        extension.include_dirs.append("build/vtl_tools")  # where mypyc puts the headers of such a group
        extension.extra_link_args.append("-Wl,-Bsymbolic")  # else each name is looked up when it is loaded
    return made


class ParallelBuild(build_ext):
    """Compiles the files of a library side by side, and the libraries; the hot modules by a profile.

    gcc compiles these twice: so that they count what they execute, and after a training, tools/train.py, by
    these counts. Code that is executed often is then close together, in fewer pages and cache lines.
    """

    def build_extensions(self) -> None:
        """Compile and link all."""
        compile_in_turn, self.parallel = self.compiler.compile, True

        def compile_all(sources: list[str], *args: Any, **kwargs: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [*chain(*pool.map(lambda one: compile_in_turn([one], *args, **kwargs), sources))]

        self.compiler.compile = compile_all
        library = next((one for one in self.extensions if one.name == f"{LIBRARY}__mypyc"), None)
        reason = reason_for_no_profile()
        if library is None or reason is not None:
            if library is not None:
                tell(f"compiled without a profile: {reason}")
            super().build_extensions()
            return
        compiling, linking = library.extra_compile_args, library.extra_link_args
        library.extra_compile_args, library.extra_link_args = [*compiling, *COUNT], [*linking, *COUNT]
        self.force = True  # what an earlier build has left counts nothing
        super().build_extensions()
        try:
            counts = self.train()
            tell(f"compiled by a profile of {counts} files")
        except (OSError, subprocess.SubprocessError) as err:
            counts = 0
            said = getattr(err, "stderr", None) or str(err).encode()
            tell(f"compiled without a profile: the training failed: {said.decode().splitlines()[-1]}")
        library.extra_compile_args, library.extra_link_args = [*compiling, *(USE if counts else ())], linking
        self.build_extension(library)

    def train(self) -> int:
        """Run the training; return the number of object files with counts, which are beside them."""
        for old in Path(self.build_temp).rglob("*.gcda"):
            old.unlink()
        script = Path("tools/train.py").resolve()
        with tempfile.TemporaryDirectory() as where:
            # The package as it will be: a build in place has its libraries elsewhere still.
            no_libraries = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree("vtl_tools", Path(where, "vtl_tools"), ignore=no_libraries)
            shutil.copytree(self.build_lib, where, dirs_exist_ok=True)
            command = [sys.executable, "-I", script, where]
            subprocess.run(command, cwd=where, check=True, timeout=TRAINING_S, capture_output=True)
        counts = len([*Path(self.build_temp).rglob("*.gcda")])
        if not counts:
            raise FileNotFoundError("it left no counts")
        return counts


def tell(line: str) -> None:
    """Tell how the modules are built."""
    print(f"vtl-tools: {line}", file=sys.stderr)


if __name__ == "__main__":
    write_completions(Path(), Path("build/completion"))
    builds = {"bdist_wheel", "build", "build_ext"} & set(sys.argv)  # and not: asks for metadata
    setup(ext_modules=extensions() if builds else [], cmdclass={"build_ext": ParallelBuild})
