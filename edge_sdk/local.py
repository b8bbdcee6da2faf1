"""The library: train and evaluate on this machine's own data, without a coordinator.

    artifact = open_artifact("artifact", level="int8")
    training = train(artifact, "texts", budget_bytes=parse_size("256MB"), steps=20)
    for report in training:
        print(report.step, report.loss)
    training.save_adapter("adapter.safetensors")

`data` is a token folder (see `edge_sdk.data`), a folder with `.txt` files, a `.csv` file with the columns `text` and
`label`, a `.jsonl` file with words and their labels, or a `DataConfig`, which names kind and columns; for a model of
images an image folder, a folder with a folder of pictures for each class, or a file in the format of MNIST. What is
neither a token nor an image folder is prepared by a process of its own into a temporary folder that is gone before
training begins. For a source of your own, see `edge_sdk.prepare.prepare`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Final, final

from edge_sdk.config import DataConfig, DataKind, all_cores
from edge_sdk.data import Rows, TokenFolder, batches, in_order, open_rows
from edge_sdk.engine.artifact import Artifact, open_artifact, read_adapter
from edge_sdk.engine.plan import FAST_STORAGE, HEAD_ROWS, Limits, Plan, Storage, planned
from edge_sdk.engine.settle import settle
from edge_sdk.engine.train import Evaluation, Recipe, StepReport, train_steps
from edge_sdk.engine.train import evaluate as evaluate_batches
from edge_sdk.engine.walk import Walk
from edge_sdk.environment import training_environment
from edge_sdk.errors import ConfigError, DataError
from edge_sdk.memory import check_budget, reset_peak
from edge_sdk.prepare import command
from edge_sdk.storage import NotMeasured, measure
from edge_sdk.wire.errors import last_line
from edge_sdk.wire.tensors import Array, read_tensors, write_tensors

__all__ = ["Evaluation", "StepReport", "Training", "evaluate", "open_artifact", "train"]

Path = pathlib.Path | str
EVALUATED_ROWS: Final = 4  # at a time
MAX_LEARNING_RATE: Final = 100
TOKENS: Final = 128  # the longest row, unless somebody says otherwise
# glibc's environment variables and what mallopt calls them, see <malloc.h>.
MALLOC_OPTIONS: Final = {"MALLOC_ARENA_MAX": -8, "MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}


@final
class Training:
    """Training under way: iterate for a step each; stop when you like, `adapter` is what the steps so far made of it.

    `plan` is how steps are executed inside the budget. `adapter` holds this level's tensors by global name.
    """

    def __init__(self, artifact: Artifact, plan: Plan, adapter: dict[str, Array], steps: Iterator[StepReport]) -> None:
        """`steps` trains `adapter` in place."""
        self.artifact, self.plan, self.adapter = artifact, plan, adapter
        self._steps = steps

    def __iter__(self) -> Training:
        return self

    def __next__(self) -> StepReport:
        """One step. Raises NonFinite, OverBudget, MemoryError."""
        return next(self._steps)

    def save_adapter(self, path: Path) -> None:
        """Write all adapter tensors of the full model in the safetensors format; layers not kept here are unchanged."""
        manifest = self.artifact.manifest
        write_tensors(pathlib.Path(path), read_tensors(self.artifact.path(manifest.adapter.initial)) | self.adapter)


def train(  # noqa: PLR0913 - each has a name where it is called
    artifact: Artifact,
    data: Path | DataConfig,
    *,
    budget_bytes: int,
    steps: int,
    batch: int = 1,
    tokens: int = TOKENS,
    learning_rate: float = 1e-3,
    threads: int | None = None,
    adapter: Path | None = None,
    seed: int = 0,
    integers: bool = False,
) -> Training:
    """Get ready to train in this process, with AdamW, on all rows of `data`, cut at `tokens`; images are never cut.

    The budget bounds this process's peak resident memory from now on, with everything else that it holds.

    Args:
        artifact: What `open_artifact` opened.
        data: See the module.
        budget_bytes: Bytes; `parse_size("256MB")`.
        steps: Steps in all.
        batch: Rows a step; the plan may walk fewer at a time.
        tokens: The longest row.
        learning_rate: Of every step.
        threads: All cores by default.
        adapter: Tensor file to go on from; the artifact's initial adapter by default.
        seed: Draws the order of the rows.
        integers: Allow integer products on the way back where they make this device a tenth faster. Gradients are then
            off by the manifest's `integers_error`.

    Raises:
        OverBudget: nothing fits; it says what the leanest plan would need.
        ConfigError: a number that cannot be, or text without the tokenizers library.
        DataError: the data is missing, empty, or not what the model can read.
        ArtifactError: the artifact, or the adapter, cannot be used here.
    """
    tokens = artifact.row_tokens(tokens)
    _check(steps=steps, batch=batch, tokens=tokens)
    if not 0 <= learning_rate <= MAX_LEARNING_RATE:  # also refuses nan
        msg = f"learning_rate is {learning_rate}; it must be from 0 to {MAX_LEARNING_RATE}"
        raise ConfigError(msg)
    storage = _storage(artifact, budget_bytes)
    limits = Limits(batch, tokens, budget_bytes, threads or all_cores(), storage=storage, integers=integers)
    planned(artifact.manifest, limits)  # before anything takes long
    folder = open_data(artifact, data, tokens)
    rows = batches(folder, folder.usable(), batch, tokens, seed)
    _return_freed_memory()
    reset_peak()
    watch = _Watch()
    walk = settle(artifact, limits, watch.check)
    watch.budget_bytes = budget_bytes
    values = _adapter(artifact, adapter)  # not before: a plan counts it beside what is at rest
    recipe = Recipe(steps=steps, batch=batch, tokens=tokens, learning_rate=learning_rate, seed=seed)
    return Training(artifact, walk.plan, values, train_steps(walk, values, rows, recipe))


def evaluate(
    artifact: Artifact | Path,
    data: Path | DataConfig,
    *,
    level: str | None = None,
    adapter: Path | None = None,
    rows: int | None = None,
    tokens: int | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Loss (and accuracy, for a classifier) of an adapter over the first `rows` usable rows of `data`.

    `tokens` matters to text alone, 128 by default where the model reads so many; a token folder's rows are taken whole.
    Raises like `train`, and NonFinite.
    """
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact, level)
    tokens = opened.row_tokens(min(TOKENS, opened.manifest.model.max_tokens) if tokens is None else tokens)
    _check(tokens=tokens)
    folder = open_data(opened, data, tokens)
    chosen = folder.usable()[:rows]
    if not len(chosen):
        msg = f"{folder.path} has no usable row"
        raise DataError(msg)
    limit = opened.manifest.model.max_tokens
    if isinstance(folder, TokenFolder) and (longest := folder.lengths[chosen].max()) > limit:
        msg = f"{folder.path} has a row of {longest} tokens; this model reads at most {limit}"
        raise DataError(msg)
    walk = Walk(opened, threads or all_cores(), Plan(EVALUATED_ROWS, HEAD_ROWS[0]), lambda: None)
    return evaluate_batches(walk, _adapter(opened, adapter), in_order(folder, chosen, EVALUATED_ROWS, folder.tokens))


def open_data(artifact: Artifact, data: Path | DataConfig, tokens: int) -> Rows:
    """The rows of `data`, mapped, for this artifact. Text and pictures are prepared in a temporary folder first.

    Raises DataError, ArtifactError, ConfigError.
    """
    model = artifact.manifest.model
    config = data if isinstance(data, DataConfig) else _config(pathlib.Path(data), images=model.image is not None)
    if config.kind in {DataKind.TOKEN_ARRAYS, DataKind.IMAGE_ARRAYS}:
        return open_rows(config.path, model)
    tokenizer = artifact.path(artifact.manifest.tokenizer) if artifact.manifest.tokenizer else None
    with tempfile.TemporaryDirectory(prefix="fedpeat-") as folder:
        out = pathlib.Path(folder, "rows")
        per_token = model.task.labels_tokens
        _run(command(config, tokenizer, tokens, model.labels, out, image=model.image, labels_tokens=per_token))
        return open_rows(out, model)  # a mapping outlives its file's name


@dataclasses.dataclass(slots=True)
class _Watch:
    """What a walk asks between segments: nothing until a budget is set."""

    budget_bytes: int = sys.maxsize

    def check(self) -> None:
        check_budget(self.budget_bytes)


def _config(path: pathlib.Path, *, images: bool) -> DataConfig:
    if path.is_dir():
        if images:
            kind = DataKind.IMAGE_ARRAYS if (path / "images.npy").exists() else DataKind.IMAGE_FILES
        else:
            kind = DataKind.TOKEN_ARRAYS if (path / "ids.npy").exists() else DataKind.TEXT_FOLDER
        return DataConfig(kind=kind, path=path)
    if "idx3" in path.name and path.is_file():
        return DataConfig(kind=DataKind.IDX, path=path)
    by_suffix = {".csv": DataKind.CSV, ".jsonl": DataKind.JSON_LINES}
    if path.suffix.lower() in by_suffix and path.is_file():
        return DataConfig(kind=by_suffix[path.suffix.lower()], path=path)
    msg = f"{path} is not there" if not path.exists() else f"{path} is no folder, and no .csv or .jsonl file"
    raise DataError(msg)


def _run(prepare: list[str]) -> None:
    done = subprocess.run(prepare, capture_output=True, text=True, check=False, env=training_environment(1))
    if done.returncode != 0:
        last = last_line(done.stderr, f"exit status {done.returncode}")
        raise DataError(last.removeprefix("edge_sdk.prepare: "))


def _storage(artifact: Artifact, budget_bytes: int) -> Storage:
    """Where it cannot be measured, plans count with weights in memory."""
    try:
        return measure(artifact.largest_path(), budget_bytes)
    except NotMeasured:
        return FAST_STORAGE


def _adapter(artifact: Artifact, path: Path | None) -> dict[str, Array]:
    if path is None:
        return artifact.initial_adapter()
    return read_adapter(pathlib.Path(path), artifact.manifest)


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            msg = f"{name} is {number}; it must be at least 1"
            raise ConfigError(msg)


def _return_freed_memory() -> None:
    """What `training_environment` arranges for a child before it starts, for this process that has started already."""
    settings, libc = training_environment(1), ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's own; other libraries have neither the function nor the habit
        for name, option in MALLOC_OPTIONS.items():
            libc.mallopt(option, int(settings[name]))
