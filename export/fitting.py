"""What a level keeps, fitted to the whole model on public data: block tensors that are its own.

Blocks that train stay the model's own, where there are others: an adapter learns on what it will be plugged into, and
these tensors are shared with other levels. What is in no block is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from torch import nn

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import LevelSpec, Manifest
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import named
from export.compress.distill import distil
from export.compress.quantize import whole_tensors
from export.compress.states import Imitation, fit_states
from export.errors import ExportError, UnsupportedError
from export.evaluate import Rows
from export.parts import backbone_of, blocks_of, keep_layers
from export.program import Adapted, places

Fitted: TypeAlias = Mapping[int, Mapping[str, Array]]  # by layer of the full model, by input name, float32
NOT_FITTED: Final[Fitted] = MappingProxyType({})


def fit(
    adapted: Adapted,
    operated: nn.Module | None,
    level: LevelSpec,
    public: Rows,
    seed: int,
    report: Callable[[str], None],
) -> Fitted:
    """The blocks of a level with a refit, without what the adapter trains; `report` is told how far it is.

    `operated` is the model after the level's surgery, before any adapter; None where the level has none. It is left as
    it is. Least squares go first; where training follows, or a surgery was refitted, blocks that they cannot fit are
    taken as they are. Raises ExportError.
    """
    if level.refit is None:
        return NOT_FITTED
    teacher = adapted.foundation.load(seed)
    student = copy.deepcopy(teacher if operated is None else operated)
    keep_layers(student, level.layers)
    pair = Imitation(adapted.foundation, student, teacher, level.layers)
    report("least squares")
    try:
        fit_states(pair, _own_weights(adapted, pair, level).keys(), public)
    except UnsupportedError:
        if operated is None and not level.refit.steps:
            raise
    if level.refit.steps:
        weights = [weight for own in _own_weights(adapted, pair, level).values() for weight in own.values()]
        distil(pair, weights, public, level.refit, seed, report)
    found = _own_weights(adapted, pair, level)
    return {layer: {name: w.detach().numpy() for name, w in own.items()} for layer, own in found.items()}


def _own_weights(adapted: Adapted, pair: Imitation, level: LevelSpec) -> dict[int, dict[str, nn.Parameter]]:
    """What is fitted of the student: by layer, by input name."""
    blocks = zip(pair.layers, blocks_of(backbone_of(pair.student)), strict=True)
    found = {
        layer: {
            name: entry.value
            for name, entry in named(adapted.foundation.family.block(block)).items()
            if f"block.{layer}/{name}" not in adapted.parameters
        }
        for layer, block in blocks
    }
    found = {layer: weights for layer, weights in found.items() if weights}
    if not found:
        msg = f"level {level.name} has no refit: all its blocks train whole"
        raise ExportError(msg)
    return {layer: own for layer, own in found.items() if layer not in level.trained_layers} or found


def read_fitted(adapted: Adapted, store: BlobStore, manifest: Manifest) -> Fitted:
    """The blocks of a level with a refit as its tensor files have them; none of a level without.

    How they came about cannot be repeated to the bit on another machine, so a proof of gradients begins with them.
    """
    level = manifest.level
    if level.refit is None:
        return NOT_FITTED
    tensors = {segment.name: segment.tensors for segment in manifest.walk}
    found = {}
    for place in places(adapted):
        if place.layer in level.layers:
            held = read_tensors(store.path(manifest.files[tensors[place.segment]].sha256))
            shapes = {name: array.shape for name, array in place.frozen().items()}
            found[place.layer] = whole_tensors(held, shapes, level.bits_of(place.layer))
    return found
