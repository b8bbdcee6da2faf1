"""DeiT: ViT with a second token, which learned from a teacher. https://arxiv.org/abs/2012.12877

Its classifier is on the class token alone. A checkpoint that has one on either token, and takes their mean, keeps
neither: a new task has other classes, and transformers cannot train those two.
"""

from __future__ import annotations

from edge_sdk.wire.manifest import TaskType
from export.families import Family
from export.parts import Part
from export.patches import classify_first_token, embed_patches, no_context, patches_of

FAMILY = Family(
    name="deit",
    model_types=("deit",),
    targets=("q_proj", "v_proj"),
    embed=embed_patches,
    block=Part,
    norm=lambda backbone: Part(backbone.layernorm),
    context=no_context,
    heads={TaskType.IMAGE_CLASSIFICATION: classify_first_token},
    max_tokens=lambda config: 2 + patches_of(config),
    keys_values=("k_proj", "v_proj"),
    feedforward=("fc2",),
    idle=("k_proj.bias",),
)
