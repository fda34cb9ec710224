"""What fuzzing learned, again and without atheris: every input of every target's corpus in the tree."""

import pytest

from tests.fuzz import run


@pytest.mark.parametrize("name", run.TARGETS)
def test_no_input_of_the_corpus_finds_anything(name):
    target, failed = run.target(name), {}
    inputs = {path.name: path.read_bytes() for path in run.kept(name)}
    inputs |= {f"seed {number}": seed for number, seed in enumerate(target.seeds())}
    for place, data in inputs.items():
        try:
            target.one(data)
        except Exception as err:
            failed[place] = repr(err)
    assert not failed


@pytest.mark.parametrize("name", run.TARGETS)
def test_a_corpus_is_there_and_small(name):
    sizes = [path.stat().st_size for path in run.kept(name)]
    assert 0 < len(sizes) <= run.FILES_MAX
    assert sum(sizes) <= run.OCTETS_MAX


def test_every_corpus_has_its_target():
    assert {path.name for path in run.CORPUS.iterdir()} == set(run.TARGETS)
