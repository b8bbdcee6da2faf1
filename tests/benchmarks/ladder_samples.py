"""A subject and a ladder of it, for tests of the experiments that read ladders."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.ladders import Subject

TRAINING = {"steps": 10, "batch": 1, "learning_rate": 1e-3}
SUBJECT = Subject(
    name="speeches",
    title="a model on speeches",
    model={"dir": "model", "task": "causal-lm"},
    adapter={"kind": "lora"},
    training=TRAINING,
    data=pathlib.Path("texts"),
    held_out=8,
    public=4,
    layers=30,
    megabytes={8: 135.4, 4: 75.8},
    width=576,
    neurons=1536,
    factored=("up_proj",),
)


def level(table: Mapping[str, Any], size_bytes: int, closed: float, accuracy: float | None = None) -> dict[str, Any]:
    """As ladder.json has it."""
    losses = dict.fromkeys(("emulator_before", "emulator", "plug_in"), 3.5)
    quality = {**losses, "emulator_accuracy": accuracy, "plug_in_accuracy": accuracy}
    found = {"name": table["name"], "level": table, "size_bytes": size_bytes, "gap_closed": closed}
    return {**found, "quality": quality}


def ladder(levels: list[dict[str, Any]]) -> dict[str, Any]:
    """Of these levels, the first of them the full model."""
    return {"training": TRAINING, "zero_shot_loss": 4.0, "tuned_loss": 3.5, "levels": levels}
