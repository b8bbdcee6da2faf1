"""House rules that no linter holds: tests say what they prove, and nothing grows too long to read."""

from __future__ import annotations

import ast
import functools
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("edge_sdk", "export", "coordinator", "benchmarks", "tests")
MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 500

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[pathlib.Path]:
    """Every Python file of ours."""
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


@functools.cache
def functions(path: pathlib.Path) -> tuple[Function, ...]:
    """The functions of a file, methods and inner ones included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(node for node in ast.walk(tree) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """How long a function is, without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    skipped = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - skipped


def test_tests_say_what_they_prove() -> None:
    """Every test has a docstring: the property that it holds."""
    silent = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in sources()
        if path.name.startswith("test_")
        for function in functions(path)
        if function.name.startswith("test") and not ast.get_docstring(function)
    ]
    assert not silent


def test_functions_fit_on_a_screen() -> None:
    """No function is longer than 80 lines, its docstring aside."""
    long = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {body_lines(function)} lines"
        for path in sources()
        for function in functions(path)
        if body_lines(function) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_files_have_one_subject() -> None:
    """No file is longer than 500 lines: one that is holds two subjects."""
    lines = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert not {path: count for path, count in lines.items() if count > MAX_FILE_LINES}


def test_no_process_makes_anothers_fixtures(request: pytest.FixtureRequest) -> None:
    """Where tests run in several processes, those that share fixtures are kept together, which takes a quarter of the
    time: the test's own id has its group. A release of pytest once let groups go without a word.
    """
    if not hasattr(request.config, "workerinput"):
        pytest.skip("one process has all fixtures")
    assert "@" in request.node.nodeid.rpartition("]")[2]
