"""How much each block changes the hidden state of public data; those that change it least can be dropped.

Block influence, ShortGPT, https://arxiv.org/abs/2403.03853, section 3.1: the mean over tokens of 1 - cos(x, y) of a
block's input x and output y. Nothing is trained.
"""

from __future__ import annotations

from torch import nn
from torch.nn.functional import cosine_similarity

from export.evaluate import Rows
from export.parts import backbone_of, blocks_of
from export.public import run, seen


def block_influence(model: nn.Module, public: Rows) -> tuple[float, ...]:
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
