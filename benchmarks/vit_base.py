"""The parameters that FedPEFT's methods train on its ViT-Base, counted on the architecture itself.

G. Sun et al., Exploring Parameter-Efficient Fine-Tuning to Enable Foundation Models in Federated Learning (arXiv
2210.01708): vit_base_patch16_224 with a classifier of CIFAR-100's 100 classes. No weight is made for it.

Two of its methods are not as ours. Its adapter is one bottleneck that all blocks share. Its full fine-tuning, and its
biases, have the embedding's, which ours leave as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FLOAT_BYTES = 4
CLASSES = 100
BOTTLENECK = 96  # an eighth of the width
PROMPTS = 10  # of each block


def counted() -> dict[str, int]:
    """The numbers that train, by FedPEFT's method."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config: Any = ViTConfig()  # the defaults are ViT-Base's, with patches of 16 x 16 of images of 224 x 224
    config.num_labels = CLASSES
    with torch.device("meta"):
        model: Any = ViTForImageClassification(config)
    width = config.hidden_size

    def count(trains: Callable[[str], bool]) -> int:
        return sum(value.numel() for name, value in model.named_parameters() if trains(name))

    head = count(lambda name: name.startswith("classifier."))
    return {
        "full": count(lambda _name: True),
        "head": head,
        "bias": count(lambda name: name.startswith("classifier.") or name.endswith(".bias")),
        "adapter": head + 2 * width * BOTTLENECK + BOTTLENECK + width,
        "prompt": head + config.num_hidden_layers * PROMPTS * width,
    }
