"""What is asked for -> which layers an emulator level keeps, which of them train, in how many bits.

A device with less memory gets a smaller level of the model; all levels share one adapter, by layer of the full model,
and a level may have it at a lower rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_sdk.wire.manifest import LevelSpec
from export.compress.depth import layers_beside
from export.errors import ExportError

FLOATING_BITS = (32, 16)


@dataclass(frozen=True, slots=True)
class LevelRequest:
    """One level: how many layers to keep (None: all), how many of the last kept ones train (None: all of them).

    `rank` is that of the adapter there (None: the adapter's own); `export.build` checks it.
    """

    name: str
    bits: int
    layers: int | None
    train_last: int | None
    rank: int | None = None


def default_name(bits: int, layers: int | None, train_last: int | None) -> str:
    """A name that says what the level is: `fp32`, `int8-24layers-last6`."""
    parts = [f"fp{bits}" if bits in FLOATING_BITS else f"int{bits}"]
    if layers is not None:
        parts.append(f"{layers}layers")
    if train_last is not None:
        parts.append(f"last{train_last}")
    return "-".join(parts)


def resolve_level(request: LevelRequest, total: int, adapted: Sequence[int]) -> LevelSpec:
    """The level of a model of `total` layers, of which those `adapted` have a part of the adapter.

    Raises ExportError for one that cannot be.
    """
    kept = layers_beside(total, total if request.layers is None else request.layers, adapted)
    last = len(kept) if request.train_last is None else request.train_last
    if not 1 <= last <= len(kept):
        msg = f"cannot train the last {last} of {len(kept)} layers: give 1 to {len(kept)}"
        raise ExportError(msg)
    trained = tuple(layer for layer in kept if layer in adapted)[-last:]
    try:
        return LevelSpec(name=request.name, layers=kept, trained_layers=trained, bits=request.bits)
    except ValueError as error:
        raise ExportError(str(error)) from error
