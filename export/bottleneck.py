"""Bottleneck adapters: behind a projection, two small products with a ReLU between them, added to what it gives.

    y + up(relu(down(y)))        down (rank, width), up (width, rank), each with a bias; up starts as zeros

Behind the feed-forward of every block, as Pfeiffer et al. have it (https://arxiv.org/abs/2005.00247), or behind
attention as well, as Houlsby et al. (https://arxiv.org/abs/1902.00751). peft has no such kind, but trains and saves any
module of a model: once the modules are there, which `FILE` in a checkpoint names, peft loads it like any other.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from export.errors import ExportError

FILE = "bottleneck.json"


class Bottleneck(nn.Module):
    """The two products; starts as identity."""

    def __init__(self, width: int, rank: int) -> None:
        """Draw `down`."""
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        """`y` (..., width), changed."""
        changed: Tensor = y + self.up(torch.relu(self.down(y)))
        return changed


class WithBottleneck(nn.Module):
    """A projection and the bottleneck behind it."""

    def __init__(self, base_layer: nn.Module, width: int, rank: int) -> None:
        """Share the projection."""
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck = Bottleneck(width, rank)

    def forward(self, x: Tensor) -> Tensor:
        """What the projection makes of `x`, changed."""
        changed: Tensor = self.bottleneck(self.base_layer(x))
        return changed


def insert(model: nn.Module, modules: Sequence[str], rank: int) -> list[str]:
    """Put a bottleneck behind each of `modules`, by full name, in place: the bottlenecks' names.

    Raises ExportError for a module that is not there, or no projection.
    """
    inner: dict[str, Any] = dict(model.named_modules())
    for name in modules:
        found = inner.get(name)
        if not isinstance(found, nn.Linear | Conv1D):
            msg = f"cannot put a bottleneck behind {name}: it is no projection"
            raise ExportError(msg)
        width = found.nf if isinstance(found, Conv1D) else found.out_features
        parent, _, last = name.rpartition(".")
        setattr(inner[parent], last, WithBottleneck(found, width, rank))
    return [f"{name}.bottleneck" for name in modules]


def note(folder: pathlib.Path, model: nn.Module) -> None:
    """Write into a checkpoint which modules of `model` have bottlenecks, if any has. Raises OSError."""
    found = {name: inner for name, inner in model.named_modules() if isinstance(inner, WithBottleneck)}
    if found:
        rank = next(iter(found.values())).bottleneck.down.out_features
        (folder / FILE).write_text(json.dumps({"rank": rank, "modules": list(found)}, indent=1), encoding="utf-8")


def restore(folder: pathlib.Path, model: nn.Module) -> None:
    """Insert what a checkpoint notes, so that peft can load it; nothing where it notes none.

    Raises ExportError for a note of another model, OSError, ValueError and KeyError for what is none.
    """
    if (folder / FILE).is_file():
        noted = json.loads((folder / FILE).read_text(encoding="utf-8"))
        insert(model, noted["modules"], noted["rank"])
