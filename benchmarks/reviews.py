"""Rotten Tomatoes and MiniLM for experiments: reviews dealt out to devices, and some that no device has."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from benchmarks import assets, fleet, partition, studies
from edge_sdk.config import DataConfig, DataKind
from edge_sdk.prepare import prepare
from edge_sdk.sources import open_source

LEAST: Final = 10  # reviews of a device
LORA: Final = {"kind": "lora", "rank": 8, "alpha": 16, "targets": ["query", "value"]}


def model() -> dict[str, Any]:
    """The coordinator's `[model]` table. Raises FetchError."""
    return {"dir": str(assets.minilm()), "task": "sequence-classification", "labels": list(studies.LABELS)}


def deal(
    devices: int, alpha: float, seed: int, folder: pathlib.Path, budgets: Sequence[int] = ()
) -> list[fleet.Member]:
    """All the training reviews to `devices`, by label skew; with `budgets`, each device in turn has one of them."""
    rows = studies.read_reviews(assets.reviews().train)
    labels = np.array([studies.LABELS.index(label) for _, label in rows])
    members = []
    folder.mkdir()
    for k, part in enumerate(partition.by_label(labels, devices, alpha, seed, LEAST)):
        path = folder / f"device-{k:02}.csv"
        studies.write_reviews(path, [rows[row] for row in part])
        budget = budgets[k % len(budgets)] if budgets else fleet.PLENTY_BYTES
        members.append(fleet.Member(path.stem, DataConfig(kind=DataKind.CSV, path=path), budget))
    return members


def held_out(count: int, tokens: int, folder: pathlib.Path) -> pathlib.Path:
    """The first test reviews, which are in a mixed order, as a token folder in `folder`."""
    path, out = folder / "held-out.csv", folder / "held-out"
    studies.write_reviews(path, studies.read_reviews(assets.reviews().test))
    source = open_source(DataConfig(kind=DataKind.CSV, path=path), studies.LABELS)
    tokenizer = assets.minilm() / "tokenizer.json"
    prepare(source, tokenizer, tokens=tokens, out=out, labels=studies.LABELS, max_rows=count)
    return out
