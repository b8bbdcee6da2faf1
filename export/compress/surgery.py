"""What is done to a model's blocks before its adapter is attached and its graphs are captured.

Levels that are alike in it share one captured program. The adapter stays the full model's: what it is on stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from itertools import repeat

from torch import nn

from edge_sdk.wire.manifest import Surgery
from export.compress.bridges import put_bridges
from export.compress.rank import factors, replace, require_saving
from export.compress.refit import refitted, second_moments
from export.compress.width import ffn_of, matrix_of, neurons_kept, set_matrix, slim
from export.errors import ExportError
from export.evaluate import Rows
from export.foundation import Foundation
from export.parts import backbone_of, blocks_of

WHOLE = Surgery()


def operated_model(
    foundation: Foundation, surgery: Surgery, targets: tuple[str, ...], seed: int = 0, public: Rows | None = None
) -> nn.Module:
    """The model of a folder after an operation, as below. Raises ExportError."""
    model = foundation.load(seed)
    operate(model, surgery, targets, public)
    return model


def operate(model: nn.Module, surgery: Surgery, targets: tuple[str, ...], public: Rows | None = None) -> None:
    """Operate on `model`, in place; `targets` are what an adapter will be put on, as peft finds them by their names.

    What is left is refitted where there is `public` data to do it on.

    Raises ExportError where the model has not what is asked for, where nothing would be saved, or where the adapter
    would not fit the full model any more.
    """
    blocks = blocks_of(backbone_of(model))
    adapted = set(_matching(model, targets).values())
    if surgery.ffn < 1:
        _slim(model, blocks, surgery.ffn, adapted, public)
    if surgery.svd:
        _factor(model, blocks, surgery, adapted, public)
    put_bridges(model, surgery.bridges)


def _slim(
    model: nn.Module, blocks: nn.ModuleList, share: float, adapted: AbstractSet[nn.Module], public: Rows | None
) -> None:
    ffns = [ffn_of(block) for block in blocks]
    for ffn in ffns:
        _refuse_adapted("slim", ffn.modules, adapted)
    takes = [ffn.takes[1] for ffn in ffns]
    kept = [neurons_kept(ffn, share) for ffn in ffns]
    better = []
    if public is not None:
        moments = second_moments(model, takes, public)
        better = [refitted(matrix_of(m), k, moment) for m, k, moment in zip(takes, kept, moments, strict=True)]
    for ffn, neurons in zip(ffns, kept, strict=True):
        slim(ffn, neurons)
    for module, matrix in zip(takes, better, strict=False):
        set_matrix(module, matrix)


def _factor(
    model: nn.Module, blocks: nn.ModuleList, surgery: Surgery, adapted: AbstractSet[nn.Module], public: Rows | None
) -> None:
    places = [(block, path) for block in blocks for path in _named(block, surgery.svd)]
    modules = [block.get_submodule(path) for block, path in places]
    for (_, path), module in zip(places, modules, strict=True):
        _refuse_adapted("factor", {path: module}, adapted)
        require_saving(path, module, surgery.svd_rank)
    moments = repeat(None) if public is None else second_moments(model, modules, public)
    pairs = [factors(matrix_of(m), surgery.svd_rank, moment) for m, moment in zip(modules, moments, strict=False)]
    for (block, path), pair in zip(places, pairs, strict=True):
        replace(block, path, pair)


def _named(block: nn.Module, names: tuple[str, ...]) -> list[str]:
    """The paths of a block's modules of these names. Raises ExportError for a name that none has."""
    for name in names:
        if not _matching(block, (name,)):
            msg = f"svd of {name}: a {type(block).__name__} has no module of that name"
            raise ExportError(msg)
    return list(_matching(block, names))


def _refuse_adapted(what: str, modules: Mapping[str, nn.Module], adapted: AbstractSet[nn.Module]) -> None:
    if both := [path for path, module in modules.items() if module in adapted]:
        msg = f"cannot {what} {both[0]}, which is adapted: an adapter must fit the full model; choose other --targets"
        raise ExportError(msg)


def _matching(module: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules below one whose paths end in one of these names, by whole parts: so peft finds its targets."""
    endings = tuple(f".{name}" for name in names)
    return {path: below for path, below in module.named_modules() if f".{path}".endswith(endings)}
