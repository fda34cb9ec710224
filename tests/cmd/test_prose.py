"""The prose that users read: the subject of a sentence is a noun, and no word is archaic.

A sentence that begins with a free relative ("What is full drops") is read twice. Questions are fine.
"""

import re
from collections.abc import Callable, Iterator

import click
import pytest

from tests.cmd.tools import ROOT, TOOLS, command

PAGES = sorted((ROOT / "man").iterdir())
TEXTS = sorted([*ROOT.glob("README.md"), *ROOT.glob("CONTRIBUTING.md"), *(ROOT / "docs").glob("*.md")])
FREE_RELATIVE = re.compile(
    r"(?:^|(?<=[.:!?])\s+)((?:What|Who|Whom|Whose|Whoever|Whomever|Whatever|Whichever|Which)\b[^.?!]*(?:[.!]|$))"
)
ARCHAIC = re.compile(
    r"\b(?:whoever|whomever|whosoever|anew|nobody's|of (?:ours|its making)|be it|lest|thereof|hither"
    r"|is its owner's|for the asking|none the less)\b",
    re.IGNORECASE,
)
_BLOCKS = re.compile(r"^\.(?:Sh|Ss|Pp|It|Bl|El|Bd|Ed|Dl|Nd|Rs|Re)\b")
_QUOTED = re.compile(r"^\.(?:Ql|Li|Dl|Dt|Dd|Cm|Fl|Ar|Pa|Xr|Va|%\w)\b")


def of_page(text: str) -> Iterator[str]:
    """The paragraphs of a page in mdoc, without the arguments of macros for literals."""
    found: list[str] = []
    for line in re.sub(r"^\.Bd -literal.*?^\.Ed$", ".Pp", text, flags=re.M | re.S).splitlines():
        if _BLOCKS.match(line):
            yield " ".join(found)
            found = (
                re.sub(r"^\.(?:Sh|Ss|Nd)", "", line).split() if line.startswith((".Sh", ".Ss", ".Nd")) else []
            )
            if found:
                yield " ".join(found)
                found = []
        elif _QUOTED.match(line):
            found.append("literal" + ("." if line.endswith(" .") else ":" if line.endswith(" :") else ""))
        elif line.startswith("."):
            found += line.split()[1:]
        else:
            found.append(line)
    yield " ".join(found)


def of_text(text: str) -> Iterator[str]:
    """The paragraphs, list items, headings and table cells of a text in Markdown, without code."""
    text = re.sub(r"^```.*?^```$|^    .*$", "", text, flags=re.M | re.S) if "```" in text else text
    text = re.sub(r"`[^`]*`", "literal", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[*|#]|\d+\.))", text):
        for cell in block.split("|") if block.lstrip().startswith("|") else [block]:
            yield re.sub(r"^[\s#*]*(?:\d+\. )?|[*_]", "", " ".join(cell.split()))


def of_help(tool: str) -> Iterator[str]:
    """The help of a tool, of its options and of its verbs."""
    group = command(tool)
    for each in group, *group.commands.values():
        yield from re.split(r"\n\s*\n", each.help or "")
        yield from (str(p.help) for p in each.params if isinstance(p, click.Option))


def paragraphs() -> Iterator[tuple[str, str]]:
    """Each paragraph with the name of its text: a page, a Markdown file, or a tool, for its help."""
    for path in PAGES:
        yield from ((path.name, found) for found in of_page(path.read_text()))
    for path in TEXTS:
        yield from ((path.name, found) for found in of_text(path.read_text()))
    for tool in TOOLS:
        yield from ((tool, " ".join(found.split())) for found in of_help(tool))


def offenders() -> list[tuple[str, str]]:
    """The sentences to mend, each with the name of its text."""
    found = [(name, hit) for name, text in paragraphs() for hit in FREE_RELATIVE.findall(text)]
    return found + [(name, f"{m[0]}: {text}") for name, text in paragraphs() for m in ARCHAIC.finditer(text)]


def test_no_sentence_begins_with_a_free_relative_and_no_word_is_archaic() -> None:
    assert [f"{name}: {said}" for name, said in offenders()] == []


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (of_page, ".Sh DROPS\nA frame.\nWhat is full drops.\n"),
        (of_page, ".Pp\nWho asked\n.Nm\nwaits.\n"),
        (of_page, ".Sh WHAT\n.It Cm x\nWhatever the guest sends, we drop.\n"),
        (of_text, "# A\n\n* a frame. Whoever sends\n  it, waits.\n"),
        (of_text, "| a | Which is it is told. |\n"),
        (of_text, "## What is an error\n\nA text.\n"),
        (of_text, "The service is made anew.\n"),
    ],
)  # fmt: skip
def test_such_sentences_are_found(of: Callable[[str], Iterator[str]], text: str) -> None:
    assert any(FREE_RELATIVE.search(found) or ARCHAIC.search(found) for found in of(text))


@pytest.mark.parametrize("text", ["What is it? It is a frame.\n", "A frame that `What is` drops.\n"])
def test_questions_and_code_are_no_such_sentences(text: str) -> None:
    assert not any(FREE_RELATIVE.search(found) for found in of_text(text))
