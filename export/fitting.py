"""What a level keeps, fitted to the whole model on public data: tensors that are its own.

Where blocks were dropped, the bridges in their place: all else stays the model's own. In a level without any, the
blocks that were cut or are trained, and there, too, those that the adapter is on stay as they are, if there are others:
it learns on what it will be plugged into, and these tensors are shared with other levels. Then, in all of the level,
the rounding of what is held in 4 bits.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import LevelSpec, Manifest, Refit
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import adapter_arrays, named, set_adapter
from export.compress.bridges import bridges_of, fit_back, fit_there, gradients
from export.compress.calibrate import Rounding, calibrated
from export.compress.distill import distil, loss_of_outcome, loss_of_states
from export.compress.quantize import FULL_BITS, LEAST_BITS, whole_tensors
from export.compress.states import Imitation, fit_states
from export.compress.way import NO_WAY, Way, has_way, shares, to_the_end
from export.emulator import NOT_FITTED, Fitted, emulator, frozen_parameters
from export.errors import ExportError, UnsupportedError
from export.evaluate import Rows
from export.parts import backbone_of, blocks_of, keep_layers
from export.program import VOCABULARY, Adapted, adapt, layer_of


def fit(
    adapted: Adapted,
    operated: nn.Module | None,
    level: LevelSpec,
    public: Rows,
    seed: int,
    report: Callable[[str], None],
) -> Fitted:
    """What of a level that was cut and has a refit is its own, as yet in 32 bits: its bridges, or where it has none
    all blocks, without what the adapter trains. `report` is told how far it is.

    `operated` is the model after the level's surgery, before any adapter; None where the level has none. It is left as
    it is. Raises ExportError.
    """
    if level.refit is None or (operated is None and not level.refit.steps):
        return NOT_FITTED
    asked = _Asked(adapted, operated, level, level.refit, public, seed, report)
    return _fit_bridges(asked) if level.surgery.bridges else _fit_blocks(asked)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `fit` was asked for."""

    adapted: Adapted
    operated: nn.Module | None
    level: LevelSpec
    refit: Refit
    public: Rows
    seed: int
    report: Callable[[str], None]

    def imitation(self) -> Imitation:
        """The level's model as it is before it is fitted, and the whole one; neither has an adapter."""
        foundation, layers = self.adapted.foundation, self.level.layers
        teacher = foundation.load(self.seed)
        student = copy.deepcopy(teacher if self.operated is None else self.operated)
        keep_layers(student, layers)
        return Imitation(foundation, student, teacher, layers)

    def distil(
        self, pair: Imitation, weights: Sequence[nn.Parameter], loss_of: Callable[[Imitation, Rows], Tensor]
    ) -> None:
        """Train these weights of the student, where steps of that were asked for."""
        if self.refit.steps:
            distil(pair, weights, self.public, self.refit, self.seed, self.report, loss_of)


def _fit_blocks(asked: _Asked) -> Fitted:
    pair = asked.imitation()
    asked.report("least squares")
    with contextlib.suppress(UnsupportedError):  # blocks that they cannot fit are taken as they are
        fit_states(pair, _own_weights(asked.adapted, pair, asked.level).keys(), asked.public)
    own = _own_weights(asked.adapted, pair, asked.level)
    asked.distil(pair, [weight for weights in own.values() for weight in weights.values()], loss_of_states)
    return _arrays("block", _own_weights(asked.adapted, pair, asked.level))


def _fit_bridges(asked: _Asked) -> Fitted:
    adapted, public = asked.adapted, asked.public
    if asked.refit.steps and has_way(adapted.request.kind, adapted.foundation.spec.task):
        asked.report("the adapter's way")
        pair, way = _on_a_way(adapted, asked.level, public, asked.seed)
    else:
        pair, way = asked.imitation(), NO_WAY
    asked.report("bridges")
    way.go(0.0)
    fit_there(pair, public)
    bridges, along = bridges_of(pair), shares(asked.seed)

    def loss_on_the_way(pair: Imitation, rows: Rows) -> Tensor:
        way.go(next(along))
        return loss_of_outcome(pair, rows)

    def gradients_at_the_ends() -> Iterator[list[Tensor]]:
        for share in way.ends:
            way.go(share)
            yield from gradients(pair, public)

    asked.distil(pair, [w for bridge in bridges.values() for w in (bridge.states, bridge.shift)], loss_on_the_way)
    asked.report("gradients")
    fit_back(pair, gradients_at_the_ends())
    return _arrays("bridge", {layer: dict(bridge.named_parameters()) for layer, bridge in bridges.items()})


def _on_a_way(adapted: Adapted, level: LevelSpec, public: Rows, seed: int) -> tuple[Imitation, Way]:
    """The level's model and the whole one, both adapted, and the way that goes from where devices begin."""
    whole = adapt(adapted.foundation, adapted.request, seed)
    set_adapter(whole.parameters, adapter_arrays(adapted.parameters))
    in_full = dataclasses.replace(level, bits=FULL_BITS, layer_bits=())
    model, parameters = emulator(adapted, in_full)
    pair = Imitation(adapted.foundation, model.get_base_model(), whole.base, level.layers)
    names = [name for name in parameters if layer_of(name.partition("/")[0]) in level.trained_layers]
    tuned, follows = ({name: own[name] for name in names} for own in (whole.parameters, parameters))
    way = Way(*to_the_end(whole.base, tuned, public, seed), (tuned, follows))
    whole.base.requires_grad_(True)  # noqa: FBT003 - all its states have gradients, wherever the adapter begins
    return pair, way


def _arrays(kind: str, found: Mapping[int, Mapping[str, nn.Parameter]]) -> Fitted:
    return {f"{kind}.{layer}": {name: w.detach().numpy() for name, w in own.items()} for layer, own in found.items()}


@dataclass(frozen=True, slots=True)
class Calibrated:
    """How a level's matrices are rounded, and its parameters by segment of the full model and input name."""

    rounding: Rounding
    parameters: Mapping[str, Mapping[str, nn.Parameter]]

    def fitted(self, level: LevelSpec) -> Fitted:
        """The segments that a level of the same layers holds in 4 bits."""
        return {
            segment: {name: self._value(parameter) for name, parameter in own.items()}
            for segment, own in self.parameters.items()
            if level.bits_of(layer_of(segment)) == LEAST_BITS
        }

    def _value(self, parameter: nn.Parameter) -> Array:
        """As it is rounded, where it is: all else is left to the writer."""
        held = parameter in self.rounding.held
        value = self.rounding.of(parameter, LEAST_BITS) if held else parameter.detach()
        return value.numpy()


def calibrate(adapted: Adapted, level: LevelSpec, fitted: Fitted, public: Rows) -> Calibrated:
    """Find how the matrices of a level, some of them `fitted`, are best rounded to 4 bits."""
    in_full = dataclasses.replace(level, bits=FULL_BITS, layer_bits=())
    model, parameters = emulator(adapted, in_full, fitted)
    own = frozen_parameters(dataclasses.replace(adapted, peft_model=model, parameters=parameters))
    names = {f"{kind}.{k}": f"{kind}.{n}" for k, n in enumerate(level.layers) for kind in ("block", "bridge")}
    rounding = calibrated(model.get_base_model(), public, predicts=not adapted.foundation.spec.task.classifies)
    return Calibrated(rounding, {names.get(segment, segment): tensors for segment, tensors in own.items()})


def _own_weights(adapted: Adapted, pair: Imitation, level: LevelSpec) -> dict[int, dict[str, nn.Parameter]]:
    """What is fitted of the student's blocks: by layer, by input name."""
    found = {layer: weights for layer, weights in _frozen_weights(adapted, pair).items() if weights}
    if not found:
        msg = f"level {level.name} has no refit: all its blocks train whole"
        raise ExportError(msg)
    return {layer: own for layer, own in found.items() if layer not in level.trained_layers} or found


def _frozen_weights(adapted: Adapted, pair: Imitation) -> dict[int, dict[str, nn.Parameter]]:
    """What the adapter does not train of the student's blocks: by layer, by input name."""
    blocks = zip(pair.layers, blocks_of(backbone_of(pair.student)), strict=True)
    return {
        layer: {
            name: entry.value
            for name, entry in named(adapted.foundation.family.block(block)).items()
            if f"block.{layer}/{name}" not in adapted.parameters
        }
        for layer, block in blocks
    }


def read_fitted(adapted: Adapted, store: BlobStore, manifest: Manifest) -> Fitted:
    """The tensors of a level with a refit, as its files have them; none of a level without.

    How they came about cannot be repeated to the bit on another machine, so a proof of gradients begins with them.
    """
    level = manifest.level
    if level.refit is None:
        return NOT_FITTED
    files = {segment.name: segment.tensors for segment in manifest.walk}
    if manifest.vocabulary_loss is not None:
        files[VOCABULARY] = manifest.vocabulary_loss.tensors
    found = {}
    for segment, own in frozen_parameters(adapted).items():
        if segment in files:
            held = read_tensors(store.path(manifest.files[files[segment]].sha256))
            shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
            found[segment] = whole_tensors(held, shapes, level.bits_of(layer_of(segment)))
    return found
