"""Fewer layers: drop the blocks that change the hidden state least on public text.

Block influence, ShortGPT, https://arxiv.org/abs/2403.03853, section 3.1: the mean over tokens of 1 - cos(x, y) of a
block's input x and output y. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.functional import cosine_similarity

from export.compress.depth import require_layers
from export.evaluate import Tokens
from export.parts import backbone_of, blocks_of
from export.public import run, seen


def block_influence(model: nn.Module, public: Tokens) -> tuple[float, ...]:
    """The influence of every block of `model`, 0 (it passes on what it gets) to 2."""
    blocks = blocks_of(backbone_of(model))
    total, tokens = [0.0] * len(blocks), 0
    with seen(list(blocks)) as states:
        for mask, _ in run(model, public):
            for k, (x, y) in states.items():
                turned = 1 - cosine_similarity(x[mask].double(), y[mask].double(), dim=1)
                total[k] += float(turned.sum())
            tokens += int(mask.sum())
    return tuple(one / tokens for one in total)


def most_influential(influence: Sequence[float], keep: int) -> tuple[int, ...]:
    """The `keep` layers with the largest influence, in order; of equals the earlier. Raises ExportError."""
    require_layers(len(influence), keep)
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return tuple(sorted(ranked[:keep]))
