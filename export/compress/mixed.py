"""Fewer bits where they harm least: each block, and what is beside the blocks, in as many as it is worth.

What one is worth is measured: the level runs on public data with that one alone held in fewer bits, and what it
predicts moves. Of all steps to fewer bits the one with the least added error per byte saved is made next, until the
frozen tensors fit under a bound; what room is left over then gives bits back. Errors of parts are taken to add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import BITS, LevelSpec
from edge_sdk.wire.tensors import Array
from export.compress.calibrate import Rounding
from export.compress.quantize import held_bytes, is_quantized
from export.errors import ExportError
from export.evaluate import Rows
from export.parts import backbone_of, blocks_of
from export.program import Program, frozen_arrays, uses_vocabulary, vocabulary_matrix
from export.public import run

MB = 1e6
AT_ONCE = 256  # tokens whose predictions are compared at a time
SAMPLE = 16  # rows that parts are compared by: the model runs on them once for each part and each number of bits
Weights = Sequence[tuple[nn.Parameter, Callable[[int], Tensor]]]  # a model's own, and what they are in so many bits
Errors = Sequence[Mapping[int, float]]  # of each part by bits; none for the most bits it can have


def with_mixed_bits(program: Program, level: LevelSpec, errors: Errors, tensors_mb: float) -> LevelSpec:
    """The level with at most its bits for each part, such that its frozen tensors take at most `tensors_mb` MB.

    Raises ExportError where they take more even in the fewest bits.
    """
    places = {place.layer: place for place in program.walk}
    kept = [places[layer] for layer in level.layers]
    held = [list(_beside_blocks(program)), *([place.frozen()] for place in kept)]
    sizes = [{bits: sum(held_bytes(one, bits) for one in tensors) for bits in _allowed(level)} for tensors in held]
    bits, *layer_bits = choose_bits(sizes, errors, int(tensors_mb * MB))
    return dataclasses.replace(level, bits=bits, layer_bits=tuple(layer_bits))


def part_errors(program: Program, level: LevelSpec, model: nn.Module, rounding: Rounding, public: Rows) -> Errors:
    """What fewer bits than the level's do, alone, to what is beside the blocks and then to each block that is kept.

    `model` is the program's, below peft's wrapper, in the state of `level`, and is left as it is; `rounding` is of the
    same in 32 bits.
    """
    divided = zip(_parts(model), _parts(rounding.whole), strict=True)
    parts = [_frozen(own, whole, rounding) for own, whole in divided]
    return sensitivities(model, parts, _allowed(level)[1:], public[:SAMPLE], predicts=uses_vocabulary(program))


def _allowed(level: LevelSpec) -> list[int]:
    return [bits for bits in BITS if bits <= level.bits]


def choose_bits(sizes: Sequence[Mapping[int, int]], errors: Errors, room_bytes: int) -> tuple[int, ...]:
    """Bits of each part, of those that `sizes` (bytes by bits) has; `errors` are by bits, and 0 for the most of them.

    None could have more bits and less error in the room that is left. Raises ExportError where the fewest take more.
    """
    least = sum(min(size.values()) for size in sizes)
    if least > room_bytes:
        fewest = min(bits for size in sizes for bits in size)
        msg = f"the frozen tensors take {least / MB:.1f} MB even in {fewest} bits: give more MB, or keep fewer layers"
        raise ExportError(msg)
    chosen = [max(size) for size in sizes]

    def steps(*, down: bool) -> Iterator[tuple[float, int, int, int]]:
        """Error per byte, part, bits, and bytes of every step from what is chosen, but those that move no byte."""
        for k, now in enumerate(chosen):
            for bits in sizes[k]:
                more_bytes = sizes[k][bits] - sizes[k][now]
                if more_bytes and (more_bytes < 0) == down:
                    yield (errors[k].get(now, 0.0) - errors[k].get(bits, 0.0)) / more_bytes, k, bits, more_bytes

    room = room_bytes - sum(max(size.values()) for size in sizes)
    while room < 0:
        _, k, bits, more_bytes = min(steps(down=True))
        chosen[k], room = bits, room - more_bytes
    while better := [step for step in steps(down=False) if step[0] > 0 and step[3] <= room]:
        _, k, bits, more_bytes = max(better)
        chosen[k], room = bits, room - more_bytes
    return tuple(chosen)


def sensitivities(
    model: nn.Module, parts: Sequence[Weights], fewer: Sequence[int], public: Rows, *, predicts: bool
) -> Errors:
    """For each part of `model`, by bits: how far what it computes moves when that part alone is held in them.

    Where the model `predicts` tokens, the divergence KL(before, after) of what is predicted, in nats per token. Else
    the mean over tokens of the square of the last hidden state's change over the square of the state.
    """
    wanted, before = _states(model, public), _vocabulary(model) if predicts else None
    errors: list[dict[int, float]] = []
    for part in parts:
        found = {}
        for bits in fewer:
            with _held(part, bits):
                states = _states(model, public)
                if before is None:
                    found[bits] = _change(states, wanted)
                else:
                    found[bits] = _divergence(states, _vocabulary(model), wanted, before)
        errors.append(found)
    return errors


def _states(model: nn.Module, public: Rows) -> Tensor:
    """The last hidden state of every token (tokens, width)."""
    return torch.cat([state[mask] for mask, state in run(model, public)])


def _vocabulary(model: Any) -> Tensor:  # noqa: ANN401 - transformers' modules are typed by attribute
    found: Tensor = model.get_output_embeddings().weight.data
    return found


def _change(states: Tensor, wanted: Tensor) -> float:
    return float(((states - wanted).square().sum(dim=1) / wanted.square().sum(dim=1)).mean())


def _divergence(states: Tensor, after: Tensor, wanted: Tensor, before: Tensor) -> float:
    total = 0.0
    for x, y in zip(states.split(AT_ONCE), wanted.split(AT_ONCE), strict=True):
        q, p = torch.log_softmax(x @ after.T, dim=1), torch.log_softmax(y @ before.T, dim=1)
        total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
    return total / len(states)


@contextmanager
def _held(part: Weights, bits: int) -> Iterator[None]:
    """A model whose `part` is held in so many bits; afterwards it has its own weights again."""
    own = [p.data for p, _ in part]
    for p, rounded in part:
        p.data = rounded(bits)
    try:
        yield
    finally:
        for (p, _), value in zip(part, own, strict=True):
            p.data = value


def _parts(model: nn.Module) -> list[list[nn.Parameter]]:
    """What is in no block, then each block."""
    blocks = [list(block.parameters()) for block in blocks_of(backbone_of(model))]
    inside = {p for block in blocks for p in block}
    return [[p for p in model.parameters() if p not in inside], *blocks]


def _frozen(own: Iterable[nn.Parameter], whole: Iterable[nn.Parameter], rounding: Rounding) -> Weights:
    """Of the parameters of two equal modules, what is held in bits."""
    pairs = zip(own, whole, strict=True)
    return [(p, partial(rounding.of, w)) for p, w in pairs if not p.requires_grad and is_quantized(p.shape)]


def _beside_blocks(program: Program) -> Iterator[dict[str, Array]]:
    """The frozen tensors of what is no block, each once."""
    yield from (place.frozen() for place in program.walk if place.layer is None)
    if uses_vocabulary(program):
        matrix, tied = vocabulary_matrix(program.adapted)
        if not tied:
            yield {"matrix": matrix.detach().numpy()}
    if program.head is not None:
        yield frozen_arrays(program.head)
