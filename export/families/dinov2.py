"""DINOv2: ViT with scaled residuals; its classifier is on the class token and the mean of the patches.

Its positions were trained for larger images than it is used with: they are stretched once, when the model is loaded,
as transformers does it in each forward pass. https://arxiv.org/abs/2304.07193
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import TaskType
from export.families import Family
from export.parts import Part
from export.patches import both, embed_patches, no_context, patches_of


class Classifier(nn.Module):
    """The classifier of a `Dinov2ForImageClassification`, its tensors named as in the model."""

    def __init__(self, classifier: nn.Module) -> None:
        """Share the module."""
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of the hidden state (batch, tokens, width)."""
        logits: Tensor = self.classifier(torch.cat([x[:, 0], x[:, 1:].mean(dim=1)], dim=1))
        return logits


def _check(config: Any) -> str | None:  # noqa: ANN401 - transformers' configurations are typed by attribute
    height, width = both(config.image_size)
    if height != width:
        return f"DINOv2 with images of {height} x {width} is not supported, only with square ones"
    return None


FAMILY = Family(
    name="dinov2",
    model_types=("dinov2",),
    targets=("q_proj", "v_proj"),
    embed=embed_patches,
    block=Part,
    norm=lambda backbone: Part(backbone.layernorm),
    context=no_context,
    heads={TaskType.IMAGE_CLASSIFICATION: lambda model: Part(Classifier(model.classifier))},
    check=_check,
    max_tokens=lambda config: 1 + patches_of(config),
    keys_values=("k_proj", "v_proj"),
    feedforward=("fc2", "weights_out"),
    idle=("k_proj.bias",),
)
