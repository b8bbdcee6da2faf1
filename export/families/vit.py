"""ViT: patches behind a class token, encoder blocks, layer norm, a classifier on the class token.

Also DeiT without distillation and other models that declare themselves `vit`. https://arxiv.org/abs/2010.11929
"""

from __future__ import annotations

from edge_sdk.wire.manifest import TaskType
from export.families import Family
from export.parts import Part
from export.patches import classify_first_token, embed_patches, no_context, patches_of

FAMILY = Family(
    name="vit",
    model_types=("vit",),
    targets=("q_proj", "v_proj"),
    embed=embed_patches,
    block=Part,
    norm=lambda backbone: Part(backbone.layernorm),
    context=no_context,
    heads={TaskType.IMAGE_CLASSIFICATION: classify_first_token},
    max_tokens=lambda config: 1 + patches_of(config),
    keys_values=("k_proj", "v_proj"),
    feedforward=("fc2",),
    idle=("k_proj.bias",),
)
