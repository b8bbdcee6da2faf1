"""The crash points in the code are those of the registry, and nothing but code names them."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

from edge_sdk.wire import crash_points

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = [path for package in ("edge_sdk", "coordinator") for path in sorted((ROOT / package).rglob("*.py"))]
STEPS = {  # by function: the place of the argument that names a step
    "written_atomically": 1,
    "moved_durably": 2,
    "write_record": 2,
    "write_json": 2,
    "put": 1,
    "adopt": 1,
    "_keep": 2,
    "_transaction": 0,
    "_write": 0,
    "crash_point": 0,
}


def named() -> Iterator[tuple[str, str]]:
    """Every literal that names a step or a point, and the function that it is given to."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            place = STEPS.get(name)
            if place is None or len(node.args) <= place:
                continue
            argument = node.args[place]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield name, argument.value


def test_registry_and_code_name_the_same_points() -> None:
    """A label that no line passes could not be swept, and a line whose label is unknown would not be."""
    points = {label for function, label in named() if function == "crash_point"}
    steps = {step for function, step in named() if function != "crash_point" and step}  # one without a name has none
    assert points == set(crash_points.POINTS)
    assert steps == set(crash_points.FILES) | set(crash_points.TRANSACTIONS)


def test_nothing_but_the_environment_arms_one() -> None:
    """The variable is read in one module, when it is imported; what is armed is never assigned again."""
    readers = [path.name for path in SOURCES if "FEDPEAT_CRASH_AT" in path.read_text("utf-8")]
    assert readers == ["crash_points.py"]
    tree = ast.parse((ROOT / "edge_sdk/wire/crash_points.py").read_text("utf-8"))
    stores = [
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "_ARMED"
    ]
    assert len(stores) == 1
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree))
    outside = [path for path in SOURCES if "_ARMED" in path.read_text("utf-8") or "armed(" in path.read_text("utf-8")]
    assert [path.name for path in outside] == ["crash_points.py"]


def test_every_call_of_a_point_has_a_literal() -> None:
    """No label is put together from what a message says: each `crash_point` has one in its line."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "crash_point":
                assert isinstance(node.args[0], ast.Constant), path
