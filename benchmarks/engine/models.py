"""The models of the scenes: what the peers load, and our levels of it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import assets, shapes, studies

TOKENS = 128
LAST = 6  # layers, of a level that trains no others
LEVELS: Sequence[Mapping[str, Any]] = (
    {"name": "fp32", "bits": 32},
    {"name": "fp16", "bits": 16},
    {"name": "int8", "bits": 8},
    {"name": "int4", "bits": 4},
)
LAST_LEVELS: Sequence[Mapping[str, Any]] = ({"name": f"fp32-last{LAST}", "bits": 32, "train_last": LAST},)


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder, the folder of its levels, and what tells a peer of its task and targets."""

    folder: pathlib.Path
    levels: pathlib.Path
    arguments: tuple[str, ...]

    def level(self, name: str) -> pathlib.Path:
        """The manifest of a level."""
        return self.levels / f"{name}.manifest"


def smollm2() -> Model:
    """SmolLM2-135M with LoRA r=8 on q and v. Raises FetchError, and RuntimeError when the export fails."""
    targets = ["q_proj", "v_proj"]
    table = {"dir": str(assets.smollm2()), "task": "causal-lm"}
    levels = _artifact("engine-smollm2", table, targets, [*LEVELS, *LAST_LEVELS])
    return Model(assets.smollm2(), levels, ("--targets", *targets))


def minilm() -> Model:
    """MiniLM with LoRA r=8 on query and value, and a classifier of two classes. Raises like `smollm2`."""
    targets = ["query", "value"]
    table = {"dir": str(assets.minilm()), "task": "sequence-classification", "labels": list(studies.LABELS)}
    levels = _artifact("engine-minilm", table, targets, LEVELS)
    return Model(assets.minilm(), levels, ("--targets", *targets, "--task", "sequence-classification"))


def vit() -> Model:
    """ViT-S/14, images of 3 x 224 x 224, with LoRA r=8 on q and v, and a classifier of two classes. Raises like
    `smollm2`.
    """
    targets = ["q_proj", "v_proj"]
    table = {"dir": str(assets.vit()), "task": "image-classification", "labels": ["0", "1"]}
    levels = _artifact("engine-vit", table, targets, LEVELS)
    return Model(assets.vit(), levels, ("--targets", *targets, "--task", "image-classification"))


def gpt2() -> Model:
    """GPT-2-124M's shape with LoRA r=8 on c_attn. Raises like `smollm2`."""
    shape = shapes.SHAPES["gpt2-124m"]
    return Model(shapes.model_of(shape), shapes.artifact_of(shape), ("--targets", "c_attn"))


def tinyllama(layers: int) -> Model:
    """TinyLlama-1.1B's shape at a depth that benchmarks.shapes has, with LoRA r=8. Raises like `smollm2`."""
    shape = shapes.SHAPES[f"tinyllama-{layers}"]
    return Model(shapes.model_of(shape), shapes.artifact_of(shape), ())


def _artifact(
    name: str, table: Mapping[str, Any], targets: Sequence[str], levels: Sequence[Mapping[str, Any]]
) -> pathlib.Path:
    """The levels, exported once; those of an earlier state of the exporter or the engine are deleted."""
    adapter = {"kind": "lora", "rank": 8, "alpha": 16, "targets": list(targets)}
    request = studies.request_of(table, adapter, levels, TOKENS, parity=False)
    return studies.newest(name, request)
