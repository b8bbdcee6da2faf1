"""What is asked for -> which layers an emulator level keeps, which of them train, in how many bits.

A device with less memory gets a smaller level of the model; all levels share one adapter, by layer of the full model.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.wire.manifest import LevelSpec
from export.compress.depth import uniform_layers
from export.errors import ExportError

BITS = (32, 8)


@dataclass(frozen=True, slots=True)
class LevelRequest:
    """One level: how many layers to keep (None: all), how many of the last kept ones train (None: all of them)."""

    name: str
    bits: int
    layers: int | None
    train_last: int | None


def default_name(bits: int, layers: int | None, train_last: int | None) -> str:
    """A name that says what the level is: `fp32`, `int8-24layers-last6`."""
    parts = ["fp32" if bits == BITS[0] else f"int{bits}"]
    if layers is not None:
        parts.append(f"{layers}layers")
    if train_last is not None:
        parts.append(f"last{train_last}")
    return "-".join(parts)


def resolve_level(request: LevelRequest, total: int) -> LevelSpec:
    """The level of a model of `total` layers. Raises ExportError for one that cannot be."""
    if request.bits not in BITS:
        msg = f"{request.bits} bits are not supported; supported are {', '.join(map(str, BITS))}"
        raise ExportError(msg)
    kept = uniform_layers(total, total if request.layers is None else request.layers)
    last = len(kept) if request.train_last is None else request.train_last
    if not 1 <= last <= len(kept):
        msg = f"cannot train the last {last} of {len(kept)} layers: give 1 to {len(kept)}"
        raise ExportError(msg)
    try:
        return LevelSpec(name=request.name, layers=kept, trained_layers=kept[-last:], bits=request.bits)
    except ValueError as error:
        raise ExportError(str(error)) from error
