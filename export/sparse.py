"""Sparse finetuning: of each target's weights a random share trains, the same in all layers of one shape.

SLoRA's first stage (https://arxiv.org/abs/2308.06522); to peft it is SHiRA (https://arxiv.org/abs/2406.13175) with a
random mask. There a sparse tensor is added to the weight, which no exporter knows: here it is a dense one, with the
values at their places. Those are constants of the graph.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Final

import torch
from peft.tuners.shira.layer import ShiraLayer
from torch import Tensor, nn

MASK_SEED: Final = 0  # of every run: devices whose values are averaged, and a second stage, mean the same places


def sparse_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of `model` that peft has made sparse ones, by name: it types them by attribute."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, ShiraLayer)}


def add_densely(model: nn.Module) -> None:
    """Let the sparse layers of `model` add their change as a dense matrix, in place."""
    for layer in sparse_layers(model).values():
        layer.forward = MethodType(_forward, layer)


def change_of(layer: Any) -> Tensor:  # noqa: ANN401 - as above
    """What a sparse layer adds to its weight, dense (out, in)."""
    (adapter,) = layer.active_adapters
    rows, columns = layer.shira_indices[adapter].long()
    places = rows * layer.in_features + columns
    flat = torch.zeros(layer.out_features * layer.in_features).scatter(0, places, layer.shira_weight[adapter])
    return flat.view(layer.out_features, layer.in_features)


def _forward(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    base = layer.get_base_layer()
    return nn.functional.linear(x, base.weight + change_of(layer), base.bias)
