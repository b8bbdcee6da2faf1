"""A causal language model as exporters can take it: whole rows, no cache, no dropout, its causal mask given."""

from __future__ import annotations

import pathlib

import torch

from benchmarks.peers.torch_peft import tuned_model


class Logits(torch.nn.Module):
    """From `ids` [batch, tokens] to logits [batch x tokens, vocabulary].

    The code that would make the mask inside cannot be exported.
    """

    def __init__(self, inner: torch.nn.Module, tokens: int) -> None:
        super().__init__()
        self.inner = inner.eval()
        mask = torch.full((1, 1, tokens, tokens), torch.finfo(torch.float32).min).triu(diagonal=1)
        self.register_buffer("mask", mask)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        logits: torch.Tensor = self.inner(input_ids=ids, attention_mask=self.mask, use_cache=False).logits
        return logits.flatten(0, 1)


class Loss(Logits):
    """From `ids` [batch, tokens] and `labels` [batch x tokens] to the mean loss in nats; -100 labels nothing."""

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """See the class."""
        return torch.nn.functional.cross_entropy(super().forward(ids), labels)


def inner_of(model: pathlib.Path, targets: list[str]) -> torch.nn.Module:
    """torch_peft's model, with the attention that exporters know."""
    inner: torch.nn.Module = tuned_model(model, "causal-lm", targets, attn_implementation="eager").get_base_model()
    return inner


def example(batch: int, tokens: int) -> torch.Tensor:
    """Token ids to trace with."""
    return torch.zeros(batch, tokens, dtype=torch.int64)
