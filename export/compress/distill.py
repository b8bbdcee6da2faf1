"""What an emulator has of its own, trained to do what the whole model does, on public data.

Blocks that were cut, by `loss_of_states`:

    loss = L + HIDDEN mean |s - t|^2 / |t|^2

over all tokens and all kept blocks: s is the state that a block gives, t the one that the whole model has where the
next kept block begins. L is the loss of what is then predicted, in nats per token; 0 for a classifier, which has learnt
no classes yet. Offsite-Tuning, https://arxiv.org/abs/2302.04870, section 3.3; its code has s and t behind the last
block alone, and trains for far longer.

Bridges, by `loss_of_outcome`: the mean over tokens of the divergence sum p (log p - log q) of what is predicted, q,
from what the whole model predicts, p; of a classifier that of |s - t|^2 / |t|^2 behind the last block. The gradient of
the divergence is q - p: what an adapter would learn on the emulator, and the whole model knows already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from edge_sdk.wire.manifest import Refit, TaskType
from export.compress.depth import ends
from export.compress.states import Imitation
from export.errors import ExportError
from export.evaluate import Rows
from export.parts import backbone_of, blocks_of
from export.public import arguments_of, drawn, mask_of, seen, token_losses

HIDDEN = 30.0  # Offsite-Tuning's
WARM_UP = 0.1  # of the steps
CLIP_NORM = 1.0
TOLD = 10  # times it is said how far it is


def distil(
    pair: Imitation,
    weights: Sequence[nn.Parameter],
    public: Rows,
    refit: Refit,
    seed: int,
    report: Callable[[str], None],
    loss_of: Callable[[Imitation, Rows], Tensor],
) -> None:
    """Train these `weights` of the student, in place, by one of the losses below.

    AdamW, with a learning rate that warms up and then falls to zero along a cosine; rows are drawn from `seed`, each
    once before any comes again. `report` is told how far it is. Raises ExportError where the loss is not finite.
    """
    pair.student.requires_grad_(False)  # noqa: FBT003 - torch takes it by place
    for weight in weights:
        weight.requires_grad_(True)  # noqa: FBT003
    optimizer = torch.optim.AdamW(weights, lr=refit.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, refit.steps))
    every = math.ceil(refit.steps / TOLD)
    for step, rows in zip(range(refit.steps), drawn(public, seed), strict=False):
        loss = loss_of(pair, rows)
        if not math.isfinite(loss.item()):
            msg = f"distillation lost its way at step {step}: give a learning rate below {refit.learning_rate:g}"
            raise ExportError(msg)
        if step % every == 0:
            report(f"distillation, step {step} of {refit.steps}, loss {loss.item():.3f}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
        optimizer.step()
        schedule.step()
    pair.student.requires_grad_(False)  # noqa: FBT003


def _share(step: int, steps: int) -> float:
    """Of the highest learning rate, at a step from 0 on."""
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def loss_of_states(pair: Imitation, rows: Rows) -> Tensor:
    """Of the states behind all kept blocks, and of what is predicted; a scalar."""
    given, whole = arguments_of(pair.student, rows), blocks_of(backbone_of(pair.teacher))
    with torch.no_grad():
        _, wanted = _states(backbone_of(pair.teacher), given, [whole[k - 1] for k in ends(pair.layers, len(whole))])
    predicts = pair.foundation.spec.task is TaskType.CAUSAL_LM
    backbone = backbone_of(pair.student)
    result, found = _states(pair.student if predicts else backbone, given, blocks_of(backbone))
    mask = mask_of(given, found[0])
    hidden = torch.stack([_relative(s[mask], t[mask]) for s, t in zip(found, wanted, strict=True)]).mean()
    loss: Tensor = HIDDEN * hidden
    if predicts and bool(mask[:, 1:].any()):
        loss = loss + token_losses(result.logits, given).mean()
    return loss


def loss_of_outcome(pair: Imitation, rows: Rows) -> Tensor:
    """Of what comes out in the end; a scalar."""
    given = arguments_of(pair.student, rows)
    if pair.foundation.spec.task is not TaskType.CAUSAL_LM:
        with torch.no_grad():
            wanted = backbone_of(pair.teacher)(**given).last_hidden_state
        found = backbone_of(pair.student)(**given).last_hidden_state
        mask = mask_of(given, found)
        return _relative(found[mask], wanted[mask])
    student: Any = pair.student
    teacher: Any = pair.teacher
    with torch.no_grad():
        wanted = teacher(**given).logits
    mask = mask_of(given, wanted)
    p, q = (logits[mask].log_softmax(dim=-1) for logits in (wanted, student(**given).logits))
    return kl_div(q, p, reduction="batchmean", log_target=True)


def _states(model: Any, given: Mapping[str, Tensor], blocks: Iterable[nn.Module]) -> tuple[Any, list[Tensor]]:  # noqa: ANN401
    """What a model makes of its arguments, and the states that some of its blocks give."""
    with seen(list(blocks)) as states:
        result = model(**given)
    return result, [state for _, (_, state) in sorted(states.items())]


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean over tokens of |found - wanted|^2 / |wanted|^2."""
    sizes = wanted.square().sum(dim=1).clamp(min=torch.finfo().tiny)
    return ((found - wanted).square().sum(dim=1) / sizes).mean()
