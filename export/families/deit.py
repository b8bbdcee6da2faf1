"""DeiT: ViT with a second token, which learned from a teacher. https://arxiv.org/abs/2012.12877

Its classifier is on the class token alone. A checkpoint that has one on either token, and takes their mean, keeps
neither: a new task has other classes, and transformers cannot train those two.
"""

from __future__ import annotations

import dataclasses

from export.families import vit
from export.patches import patches_of

FAMILY = dataclasses.replace(
    vit.FAMILY, name="deit", model_types=("deit",), max_tokens=lambda config: 2 + patches_of(config)
)
