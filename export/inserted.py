"""Modules of ours within a model, for the kinds of adapter that peft lacks.

peft trains and saves any module of a model. So ours are put around modules that are there already, and once they are,
which `FILE` in a checkpoint says, peft loads them like any other.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from export.bottleneck import WithBottleneck
from export.errors import ExportError
from export.parts import sizes_of
from export.prompt import WithPrompt

FILE = "inserted.json"
INSERTED: dict[str, type[WithBottleneck | WithPrompt]] = {"bottleneck": WithBottleneck, "prompt": WithPrompt}


def insert(model: Any, kind: str, size: int, modules: Sequence[str]) -> list[str]:  # noqa: ANN401 - any model
    """Put one of `kind` around each of `modules`, by full name, in place: the names of what trains.

    A model with prompts then uses no cache unless it is told to.

    `size` is a bottleneck's rank, a prompt's length. Raises ExportError where there is no such module, or none that it
    could be put around.
    """
    inner: dict[str, Any] = dict(model.named_modules())
    width: int = sizes_of(model.config).hidden_size
    for name in modules:
        parent, _, last = name.rpartition(".")
        try:
            made = INSERTED[kind](inner[name], size, width)
        except (KeyError, TypeError) as error:
            msg = f"cannot put a {kind} at {name}: {'no such module' if name not in inner else error}"
            raise ExportError(msg) from error
        setattr(inner[parent], last, made)
    if kind == "prompt":
        model.config.use_cache = False  # a prompt knows none
    return [f"{name}.{kind}" for name in modules]


def note(folder: pathlib.Path, model: nn.Module) -> None:
    """Write into a checkpoint what was inserted into `model`, if anything was. Raises OSError."""
    for kind, wrapper in INSERTED.items():
        found = {name: module for name, module in model.named_modules() if isinstance(module, wrapper)}
        if found:
            noted = {"kind": kind, "size": next(iter(found.values())).size, "modules": list(found)}
            (folder / FILE).write_text(json.dumps(noted, indent=1), encoding="utf-8")


def restore(folder: pathlib.Path, model: nn.Module) -> None:
    """Insert what a checkpoint notes, so that peft can load it; nothing where it notes nothing.

    Raises ExportError for a note of another model, OSError, ValueError and KeyError for what is none.
    """
    if (folder / FILE).is_file():
        noted = json.loads((folder / FILE).read_text(encoding="utf-8"))
        insert(model, noted["kind"], noted["size"], noted["modules"])
