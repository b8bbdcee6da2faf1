"""Bottleneck adapters: behind a projection, two small products with a ReLU between them, added to what it gives.

    y + up(relu(down(y)))        down (rank, width), up (width, rank), each with a bias; up starts as zeros

Behind the feed-forward of every block, as Pfeiffer et al. have it (https://arxiv.org/abs/2005.00247), or behind
attention as well, as Houlsby et al. (https://arxiv.org/abs/1902.00751).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Bottleneck(nn.Module):
    """The two products; starts as identity."""

    def __init__(self, width: int, rank: int) -> None:
        """Draw `down`."""
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        """`y` (..., width), changed."""
        changed: Tensor = y + self.up(torch.relu(self.down(y)))
        return changed


class WithBottleneck(nn.Module):
    """A projection and the bottleneck behind it, of rank `size`."""

    def __init__(self, projection: nn.Module, size: int, _width: int) -> None:
        """Share the projection, which knows its own width. Raises TypeError for what is none."""
        if not isinstance(projection, nn.Linear | Conv1D):
            msg = "it is no projection"
            raise TypeError(msg)
        super().__init__()
        self.base_layer, self.size = projection, size
        width = projection.nf if isinstance(projection, Conv1D) else projection.out_features
        self.bottleneck = Bottleneck(width, size)

    def forward(self, x: Tensor) -> Tensor:
        """What the projection makes of `x`, changed."""
        changed: Tensor = self.bottleneck(self.base_layer(x))
        return changed
