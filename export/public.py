"""Public text, which the coordinator has: what levels are chosen and refitted by, where they ask for that.

A folder of texts or a table is made into rows of tokens as a device makes its own, by the same process; labels are not
read, not even for a classifier: no technique here needs them. A token folder is read as it is.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sdk.wire.errors import last_line
from edge_sdk.wire.lifeline import parent_environment
from export.errors import ExportError
from export.evaluate import ROWS, Tokens, inputs, read_tokens
from export.foundation import Foundation
from export.parts import backbone_of


@dataclass(frozen=True, slots=True)
class PublicRequest:
    """Where public data is: a folder of .txt, a .csv with texts, or a token folder. Its first rows count."""

    path: pathlib.Path
    text_column: str = "text"
    rows: int = 16

    def __post_init__(self) -> None:
        """Refuse no rows."""
        if self.rows < 1:
            msg = f"{self.rows} rows of public data: give 1 or more"
            raise ExportError(msg)


def read_public(request: PublicRequest, foundation: Foundation, tokens: int) -> Tokens:
    """At most `request.rows` rows of at most `tokens` tokens. Raises ExportError for what cannot be read."""
    if not request.path.exists():
        msg = f"there is no public data {request.path}"
        raise ExportError(msg)
    if (request.path / "ids.npy").exists():
        found = read_tokens(request.path, foundation.spec, labelled=False)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch) / "tokens"
            _prepare(request, foundation, tokens, folder)
            found = read_tokens(folder, foundation.spec, labelled=False)
    lengths = np.minimum(found.lengths[: request.rows], tokens)
    if not lengths.any():
        msg = f"the public data {request.path} has no tokens"
        raise ExportError(msg)
    return Tokens(found.ids[: request.rows, :tokens], lengths, found.labels)


def _prepare(request: PublicRequest, foundation: Foundation, tokens: int, out: pathlib.Path) -> None:
    kind = "text-folder" if request.path.is_dir() else "csv"
    command = [sys.executable, "-m", "edge_sdk.prepare", "--kind", kind, f"--path={request.path}", f"--out={out}"]
    command += ["--tokens", str(tokens), "--max-rows", str(request.rows), f"--text-column={request.text_column}"]
    command += [f"--tokenizer={foundation.tokenizer}"] if foundation.tokenizer else []
    environment = {**os.environ, **parent_environment()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        why = last_line(done.stderr, "it said nothing").removeprefix("edge_sdk.prepare: ")
        msg = f"cannot read the public data: {why}"
        raise ExportError(msg)


def run(model: nn.Module, public: Tokens) -> Iterator[tuple[Tensor, Tensor]]:
    """The model below its head on some rows at a time: where a token is (rows, tokens), and the last hidden state."""
    backbone: Any = backbone_of(model)
    for begin in range(0, len(public.ids), ROWS):
        rows = slice(begin, begin + ROWS)
        ids, mask = inputs(Tokens(public.ids[rows], public.lengths[rows], public.labels))
        with torch.no_grad():
            state = backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        yield mask, state


@contextmanager
def seen(modules: Sequence[nn.Module]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """What goes into each of the modules and comes out, the last time it ran, by its place among them."""
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor | tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, given: tuple[Tensor, ...], result: Tensor | tuple[Tensor, ...]) -> None:
            found[index] = given[0], result[0] if isinstance(result, tuple) else result

        return hook

    handles = [module.register_forward_hook(watch(index)) for index, module in enumerate(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
