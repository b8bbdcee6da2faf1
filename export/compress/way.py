"""The way that an adapter goes while it learns: an emulator is to do what the whole model does all along it.

Fitted to the whole model as it begins, an emulator answers an adapter's change with a fraction of the whole model's
answer: what has been learnt goes on being asked for, and what is learnt next comes too late. So an adapter is tuned on
public rows, on the whole model, for STEPS steps, and an emulator is fitted at shares of that way from 0 up to FARTHEST.
On devices the adapter begins where it would begin anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.errors import ExportError
from export.evaluate import Rows
from export.kinds import FACTORS
from export.public import arguments_of, drawn, token_losses

STEPS = 30
LEARNING_RATE = 1e-3
FARTHEST = 1.5
AT_THE_BEGINNING = 3  # of the shares every so-manieth is 0


@dataclass(frozen=True, slots=True)
class Way:
    """By name, where an adapter's parameters begin and where the way leads to; and those of models to go along."""

    begin: Mapping[str, Tensor]
    end: Mapping[str, Tensor]
    models: Sequence[Mapping[str, nn.Parameter]]

    @property
    def ends(self) -> tuple[float, ...]:
        """The shares of it that are its ends: one, where nobody goes along."""
        return (0.0, 1.0) if self.models else (0.0,)

    @torch.no_grad()
    def go(self, share: float) -> None:
        """Have the adapter of all models at this share of the way."""
        for parameters in self.models:
            for name, begin in self.begin.items():
                parameters[name].copy_(torch.lerp(begin, self.end[name], share))


NO_WAY = Way({}, {}, ())


def shares(seed: int) -> Iterator[float]:
    """Of the way, without end: 0, and others by chance."""
    generator = np.random.default_rng(seed)
    while True:
        yield 0.0
        yield from generator.uniform(0, FARTHEST, AT_THE_BEGINNING - 1)


def has_way(kind: str, task: TaskType) -> bool:
    """Whether an adapter of this kind is tuned on public rows: they have no labels, and the rate is LoRA's."""
    return kind in FACTORS and task is TaskType.CAUSAL_LM


def to_the_end(
    teacher: nn.Module, parameters: Mapping[str, nn.Parameter], public: Rows, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Where these parameters of the whole model begin, and where AdamW takes them; they are left there.

    Raises ExportError where the loss is not finite.
    """
    begin = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    tuned = list(parameters.values())
    optimizer = torch.optim.AdamW(tuned, lr=LEARNING_RATE, weight_decay=0.0)
    whole: Any = teacher
    for _, rows in zip(range(STEPS), drawn(public, seed), strict=False):
        given = arguments_of(teacher, rows)
        loss = token_losses(whole(**given).logits, given).mean()
        if not math.isfinite(loss.item()):
            msg = "the whole model's loss of public rows is not finite: choose other rows"
            raise ExportError(msg)
        for parameter, gradient in zip(tuned, torch.autograd.grad(loss, tuned), strict=True):
            parameter.grad = gradient
        optimizer.step()
    optimizer.zero_grad()
    return begin, {name: parameter.detach().clone() for name, parameter in parameters.items()}
