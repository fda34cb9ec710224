"""The prose of the sources: the subject of a docstring's sentence is a noun, and no word is archaic."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.cmd.test_prose import ARCHAIC, FREE_RELATIVE

PACKAGE = Path(__file__).resolve().parents[2] / "vtl_tools"


def paragraphs(source: str) -> Iterator[tuple[int, str]]:
    """The paragraphs of all docstrings, also of attributes, with the line that each docstring begins in."""
    for node in ast.walk(ast.parse(source)):
        value = (
            node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else None
        )
        if isinstance(value, str):
            yield from ((node.lineno, " ".join(part.split())) for part in re.split(r"\n\s*\n", value))


def offenders() -> Iterator[str]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        for line, text in paragraphs(path.read_text()):
            if found := FREE_RELATIVE.search(text) or ARCHAIC.search(text):
                yield f"{name}:{line}: {found[0].strip()}"


def test_no_sentence_of_a_docstring_begins_with_a_free_relative_and_no_word_is_archaic() -> None:
    assert not list(offenders())


def test_it_finds_such_sentences() -> None:
    (found,) = paragraphs('"""What is full drops."""')
    assert FREE_RELATIVE.search(found[1])
    assert ARCHAIC.search("Raise the guard anew.")
