"""What is asked for -> which layers an emulator level keeps, which of them train, in how many bits, and what they lose.

A device with less memory gets a smaller level of the model; all levels share one adapter, by layer of the full model,
and a level may have it at a lower rank.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from edge_sdk.wire.manifest import BITS, LevelSpec, Refit, Surgery
from export.compress.depth import Choice, bridged, layers_beside, most_influential, uniform_layers
from export.errors import ExportError

FLOATING_BITS = (32, 16)
BRIDGES_RATE, BLOCKS_RATE = 6e-4, 1e-4  # of distillation: bridges are new, blocks the model's own


class Drop(enum.Enum):
    """Which layers go where not all are kept: at even distances, or those with the least influence on public data."""

    UNIFORM = "uniform"
    IMPORTANCE = "importance"


class Refitting(enum.Enum):
    """How what is kept is fitted to the whole model on public data: not, in closed form, or by training.

    In closed form fitted is what FFNs and factors are left with when something was cut, bridges in the place of blocks
    that were dropped, and how 4 bits round. By training, bridges further; in a level without, blocks that were cut.
    """

    NONE = "none"
    LEAST_SQUARES = "least-squares"
    DISTILL = "distill"


@dataclass(frozen=True, slots=True)
class LevelRequest:
    """One level: how many layers to keep (None: all), how many of the last kept ones train (None: all of them).

    `rank` is that of the adapter there (None: the adapter's own); `export.build` checks it. `drop` says which layers
    go. `ffn` is the share of FFN neurons that each block keeps; modules called as in `svd` get matrices of rank
    `svd_rank`. `refit`: what is kept is then fitted to the whole model; where by training, for `distill_steps` of a
    learning rate up to `distill_rate` (None: what suits what is trained). `tensors_mb` (None: no bound) is what the
    frozen tensors may take, in MB: some are held in fewer than `bits`, where that harms least.
    """

    name: str
    bits: int
    layers: int | None
    train_last: int | None
    rank: int | None = None
    drop: Drop = Drop.UNIFORM
    ffn: float = 1.0
    svd: tuple[str, ...] = ()
    svd_rank: int = 0
    refit: Refitting = Refitting.NONE
    distill_steps: int = 100
    distill_rate: float | None = None
    tensors_mb: float | None = None

    @property
    def needs_public(self) -> bool:
        """Whether public data must be there to make it."""
        chosen = self.drop is not Drop.UNIFORM or self.tensors_mb is not None
        return chosen or self.refit is not Refitting.NONE

    @property
    def may_have_least_bits(self) -> bool:
        """Whether some of it may be held in the fewest bits there are."""
        return self.bits == min(BITS) or self.tensors_mb is not None


def default_name(request: LevelRequest) -> str:
    """A name that says what the level is: `fp32`, `int8-24layers-last6`, `int8-60mb-ffn50-refit`."""
    parts = [f"fp{request.bits}" if request.bits in FLOATING_BITS else f"int{request.bits}"]
    if request.tensors_mb is not None:
        parts.append(f"{request.tensors_mb:g}mb")
    if request.layers is not None:
        parts.append(f"{request.layers}layers")
    if request.drop is not Drop.UNIFORM:
        parts.append(request.drop.value)
    if request.ffn != 1:
        parts.append(f"ffn{100 * request.ffn:g}")
    if request.svd:
        parts.append(f"svd{request.svd_rank}")
    if request.refit is not Refitting.NONE:
        parts.append("distill" if request.refit is Refitting.DISTILL else "refit")
    if request.train_last is not None:
        parts.append(f"last{request.train_last}")
    return "-".join(parts)


def resolve_level(
    request: LevelRequest,
    total: int,
    adapted: Sequence[int],
    *,
    influence: Sequence[float] = (),
    public_rows: int = 0,
) -> LevelSpec:
    """The level of a model of `total` layers, of which those `adapted` have a part of the adapter.

    As yet all layers are held in the same bits. `influence` is that of each layer, by which some may be dropped; a
    refit is on `public_rows` rows. Raises ExportError for a level that cannot be.
    """
    kept = _kept_layers(request, total, adapted, influence)
    last = len(kept) if request.train_last is None else request.train_last
    if not 1 <= last <= len(kept):
        msg = f"cannot train the last {last} of {len(kept)} layers: give 1 to {len(kept)}"
        raise ExportError(msg)
    trained = tuple(layer for layer in kept if layer in adapted)[-last:]
    if request.tensors_mb is not None and not (request.tensors_mb > 0 and request.bits > min(BITS)):
        bound = f"{request.tensors_mb:g} MB of tensors in {request.bits} bits or fewer"
        msg = f"{bound}: give more MB, and more than {min(BITS)} bits"
        raise ExportError(msg)
    try:
        bridges = () if request.refit is Refitting.NONE else bridged(kept, total)
        surgery = Surgery(request.ffn, request.svd, request.svd_rank, bridges)
        refit = _refit(request, public_rows, BRIDGES_RATE if bridges else BLOCKS_RATE)
        if len(kept) == total and surgery == Surgery():
            _require_fewer_bits(request)
        return LevelSpec(request.name, kept, trained, request.bits, surgery=surgery, refit=refit)
    except ValueError as error:
        raise ExportError(str(error)) from error


def _require_fewer_bits(request: LevelRequest) -> None:
    """Refuse to refit a level of which nothing was cut, where rounding is not all there is to it."""
    if request.refit is Refitting.NONE or (request.may_have_least_bits and request.refit is Refitting.LEAST_SQUARES):
        return
    cuts = "fewer layers, a share of FFN neurons below 1, or modules for svd"
    if request.refit is Refitting.DISTILL:
        msg = f"a distillation is of what was cut: give {cuts}; what 4 bits round needs {Refitting.LEAST_SQUARES.value}"
    else:
        msg = f"a refit is of what was cut, and of {min(BITS)} bits: give these, a bound on the tensors, {cuts}"
    raise ExportError(msg)


def _refit(request: LevelRequest, rows: int, rate: float) -> Refit | None:
    if request.refit is Refitting.NONE:
        return None
    if request.refit is Refitting.LEAST_SQUARES:
        return Refit(rows)
    if request.distill_steps < 1:
        msg = f"{request.distill_steps} steps of distillation: give 1 or more"
        raise ExportError(msg)
    return Refit(rows, request.distill_steps, rate if request.distill_rate is None else request.distill_rate)


def _kept_layers(
    request: LevelRequest, total: int, adapted: Sequence[int], influence: Sequence[float]
) -> tuple[int, ...]:
    if request.drop is not Drop.UNIFORM and request.layers is None:
        msg = f"level {request.name} keeps all layers: give how many, where they are dropped by {request.drop.value}"
        raise ExportError(msg)
    choose = _evenly if request.drop is Drop.UNIFORM else _by(influence)
    return layers_beside(total, total if request.layers is None else request.layers, adapted, choose)


def _evenly(layers: Sequence[int], keep: int) -> tuple[int, ...]:
    return tuple(layers[k] for k in uniform_layers(len(layers), keep))


def _by(influence: Sequence[float]) -> Choice:
    return lambda layers, keep: tuple(layers[k] for k in most_influential([influence[layer] for layer in layers], keep))
