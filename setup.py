"""Writes the shells' completion of each executable, which setup.cfg installs. All else is in setup.cfg."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

FILES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}
"""The name of an executable's file, as each shell finds it."""


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


if __name__ == "__main__":
    write_completions(Path(), Path("build/completion"))
    setup()
