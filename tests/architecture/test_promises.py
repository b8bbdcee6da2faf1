"""docs/promises.md promises what is there: its numbers, its states, and tests and commands that exist."""

from __future__ import annotations

import ast
import importlib.util
import pathlib

import pytest

from benchmarks.reliability.promises import Promise, promises

ROOT = pathlib.Path(__file__).parents[2]
PROMISES = promises()


def functions_of(path: pathlib.Path) -> set[str]:
    """The names of the functions of a file."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_are_seventeen() -> None:
    """Their numbers are in a row: whoever refers to one finds it."""
    assert [promise.number for promise in PROMISES] == [f"P{k}" for k in range(1, 18)]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.number)
def test_every_proof_exists(promise: Promise) -> None:
    """A test that is named is a function of its file, a command is a module; only what is open has no proof."""
    assert bool(promise.proofs) == (promise.state != "open")
    if promise.state == "partly":
        assert "; " in promise.words
    for proof in promise.proofs:
        if proof.startswith("python -m "):
            assert importlib.util.find_spec(proof.split()[2]) is not None, proof
        else:
            file, name = proof.split("::")
            assert name in functions_of(ROOT / file), proof


def test_the_document_says_when_a_state_is_none(tmp_path: pathlib.Path) -> None:
    """A state that is made up is refused."""
    path = tmp_path / "promises.md"
    path.write_text("| P1 | words | surely | |\n", encoding="utf-8")
    with pytest.raises(ValueError, match="surely"):
        promises(path)
