"""Public data -> rows of three kinds, none of which is in two: to tune on, to judge by, and to choose and refit by.

    data  --edge_sdk.prepare-->  rows/  --split, drawn from a seed-->  split/{tune, held-out, public}

All are folders of rows, as devices have them. What is there already is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordinator.config import Config, DataKind, EvaluationConfig
from coordinator.errors import ConfigError
from coordinator.evaluation import prepare_command
from coordinator.jobs import Jobs
from coordinator.ladder.request import Description
from edge_sdk.wire.tensors import Array

NOTE = "split.json"
PREDICTS = 2  # tokens of a row at least: a language model predicts from the second on


@dataclass(frozen=True, slots=True)
class Split:
    """The three folders; `digest` says of what rows they are."""

    tune: pathlib.Path
    held_out: pathlib.Path
    public: pathlib.Path
    digest: str


def kind_of(path: pathlib.Path, *, images: bool) -> DataKind:
    """What the data at `path` is, by what lies there. Raises ConfigError for what is none of them."""
    if path.is_dir():
        names = ("images.npy", DataKind.IMAGE_ARRAYS, DataKind.IMAGE_FILES)
        array, as_arrays, as_files = names if images else ("ids.npy", DataKind.TOKEN_ARRAYS, DataKind.TEXT_FOLDER)
        return as_arrays if (path / array).exists() else as_files
    by_suffix = {".csv": DataKind.CSV, ".jsonl": DataKind.JSON_LINES}
    if path.is_file() and path.suffix.lower() in by_suffix:
        return by_suffix[path.suffix.lower()]
    if path.is_file() and images and "idx3" in path.name:
        return DataKind.IDX
    msg = f"{path} is neither a folder nor a .csv or .jsonl file"
    raise ConfigError(msg)


def make_rows(config: Config, data: EvaluationConfig, model: Description, held_out: int, jobs: Jobs) -> Split:
    """Prepare `data` and split it: `held_out` rows to judge by, the configuration's public ones, and all others.

    Raises ConfigError where nothing would be left to tune on; JobError, OSError.
    """
    folder, out, tokens = config.out / "rows", config.out / "split", config.training.tokens
    public = 0 if config.public is None or config.public.path != out / "public" else config.public.rows
    if model.image:
        tokens = model.max_tokens
    tokenizer = config.model.dir / "tokenizer.json" if model.tokenizer else None
    command = prepare_command(data, config.model.task, tokenizer, tokens, config.model.labels, model.image, folder)
    jobs.process(command, lambda _line: None)
    usable = _usable(folder)
    kinds = {"held-out": held_out, "public": public}
    if len(usable) <= sum(kinds.values()):
        msg = (
            f"{data.path} makes {len(usable)} rows, of which {held_out} are held out and {public} are to choose levels "
            "by, so none is left to tune on: give more data, or fewer of --held-out and --public-rows"
        )
        raise ConfigError(msg)
    drawn = np.random.default_rng(config.training.seed).permutation(usable)
    parts = dict(zip(("held-out", "public", "tune"), np.split(drawn, np.cumsum(list(kinds.values()))), strict=True))
    digest = _digest(folder, config.training.seed, kinds)
    if not (out / NOTE).is_file() or (out / NOTE).read_text("utf-8") != digest:
        _write(folder, out, {name: np.sort(rows) for name, rows in parts.items()}, digest)
    return Split(out / "tune", out / "held-out", out / "public", digest)


def _usable(folder: pathlib.Path) -> Array:
    """The rows with something to predict."""
    if (folder / "lengths.npy").exists():
        return np.flatnonzero(np.load(folder / "lengths.npy") >= PREDICTS)
    return np.arange(len(np.load(folder / "labels.npy")))


def _digest(folder: pathlib.Path, seed: int, kinds: Mapping[str, int]) -> str:
    made = json.loads((folder / "prepared.json").read_text("utf-8"))["fingerprint"]
    return hashlib.sha256(json.dumps([made, seed, kinds]).encode()).hexdigest()


def _write(folder: pathlib.Path, out: pathlib.Path, parts: Mapping[str, Array], digest: str) -> None:
    making = out.with_name(f".{out.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    for name, rows in parts.items():
        (making / name).mkdir(parents=True)
        for path in folder.glob("*.npy"):
            np.save(making / name / path.name, np.load(path, mmap_mode="r")[rows])
    (making / NOTE).write_text(digest, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)
