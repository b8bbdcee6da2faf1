"""Public data, which the coordinator has: what levels are chosen and refitted by, where they ask for that.

Texts and pictures are made into rows as a device makes its own, by the same process; a token folder or an image folder
is read as it is. Labels are not used, not even for a classifier: no technique here needs them.
"""

from __future__ import annotations

import csv
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edge_sdk.wire.errors import last_line
from edge_sdk.wire.lifeline import parent_environment
from edge_sdk.wire.tensors import Array
from export.errors import ExportError
from export.evaluate import ROWS, Images, Rows, Tokens, inputs, read_rows
from export.foundation import Foundation
from export.parts import backbone_of
from export.patches import scaled

WHAT_IT_IS = "texts (a folder of .txt, a .csv), pictures in a folder for each class, or a folder of rows"


@dataclass(frozen=True, slots=True)
class PublicRequest:
    """Where public data is; its first rows count.

    A folder of .txt, a .csv with texts, or a token folder; for a model of images a folder of pictures for each class, a
    file in MNIST's format, or an image folder.
    """

    path: pathlib.Path
    text_column: str = "text"
    rows: int = 16

    def __post_init__(self) -> None:
        """Refuse no rows."""
        if self.rows < 1:
            msg = f"{self.rows} rows of public data: give 1 or more"
            raise ExportError(msg)


def read_public(request: PublicRequest, foundation: Foundation, tokens: int) -> Rows:
    """At most `request.rows` rows, those of text of at most `tokens` tokens. Raises ExportError for what cannot be
    read.
    """
    if not request.path.exists():
        msg = f"there is no public data {request.path}"
        raise ExportError(msg)
    if any((request.path / name).exists() for name in ("ids.npy", "images.npy")):
        found = read_rows(request.path, foundation.spec, labelled=False)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch) / "rows"
            _prepare(request, foundation, tokens, folder)
            found = read_rows(folder, foundation.spec, labelled=False)
    found = found[: request.rows]
    if isinstance(found, Tokens):
        found = Tokens(found.ids[:, :tokens], np.minimum(found.lengths, tokens), found.labels)
    if not (found.lengths.any() if isinstance(found, Tokens) else len(found)):
        msg = f"the public data {request.path} is empty"
        raise ExportError(msg)
    return found


def _prepare(request: PublicRequest, foundation: Foundation, tokens: int, out: pathlib.Path) -> None:
    spec, of_files = foundation.spec, request.path.is_dir()
    command = [sys.executable, "-m", "edge_sdk.prepare", f"--path={request.path}", f"--out={out}"]
    command += ["--tokens", str(spec.row_tokens(tokens)), "--max-rows", str(request.rows)]
    if spec.image is None:
        command += ["--kind", "text-folder" if of_files else "csv", f"--text-column={request.text_column}"]
    else:  # by whose labels the folders of pictures are called
        command += ["--kind", "image-files" if of_files else "idx", f"--image={spec.image}"]
        command += [f"--labels={_line(spec.labels)}"]
    command += [f"--tokenizer={foundation.tokenizer}"] if foundation.tokenizer else []
    environment = {**os.environ, **parent_environment()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        why = last_line(done.stderr, "it said nothing").removeprefix("edge_sdk.prepare: ")
        msg = f"cannot read the public data: {why}"
        raise ExportError(msg)


def _line(labels: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="", quoting=csv.QUOTE_ALL).writerow(labels)
    return line.getvalue()


def run(model: nn.Module, public: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """The model below its head on some rows at a time: where a token is (rows, tokens), and the last hidden state."""
    backbone: Any = backbone_of(model)
    for begin in range(0, len(public), ROWS):
        given = arguments_of(model, public[begin : begin + ROWS])
        with torch.no_grad():
            state = backbone(**given).last_hidden_state
        yield mask_of(given, state), state


def drawn(public: Rows, seed: int) -> Iterator[Rows]:
    """Some rows at a time, without end: each once, in an order from `seed`, before any comes again."""
    generator = np.random.default_rng(seed)
    while True:
        order: Array = generator.permutation(len(public))
        for begin in range(0, len(order), ROWS):
            yield public[order[begin : begin + ROWS]]


def arguments_of(model: nn.Module, rows: Rows) -> dict[str, Tensor]:
    """What `model` is called with."""
    if isinstance(rows, Images):
        return {"pixel_values": scaled(model, rows.stretched())}
    ids, mask = inputs(rows)
    return {"input_ids": ids, "attention_mask": mask.long()}


def token_losses(logits: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Of each predicted token, in nats: `logits` (rows, tokens, vocabulary), of a model called with `given`."""
    predicted = mask_of(given, logits)[:, 1:]
    return cross_entropy(logits[:, :-1][predicted], given["input_ids"][:, 1:][predicted], reduction="none")


def mask_of(given: Mapping[str, Tensor], state: Tensor) -> Tensor:
    """Where in a state (rows, tokens, width) a token is, of a model that was called with `given`."""
    mask = given.get("attention_mask")
    return torch.ones(state.shape[:2], dtype=torch.bool) if mask is None else mask > 0


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
