"""A BERT of random weights with a vocabulary of any size: `python -m benchmarks.large_vocabulary FOLDER TOKENS`."""

from __future__ import annotations

import pathlib
import sys

import torch
import transformers

from export.cache import cached

WIDTH, LAYERS = 64, 2


def main() -> None:
    """Run the command line."""
    folder, tokens = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokens,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    cached(folder, transformers.BertModel(config).save_pretrained)


if __name__ == "__main__":
    main()
