"""Held-out losses of adapter versions, by processes of their own, while the next round runs.

Each version is measured twice: plugged into the full model (`python -m export.cli evaluate`), and on the most
compressed emulator level (`python -m edge_sdk.cli evaluate`). Version 0 changes nothing in the model, unless the
adapter begins from another run's: its loss is the base model's.
"""

from __future__ import annotations

import csv
import io
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from coordinator.aggregate.blobs import adapter_at_rank
from coordinator.builder import Artifact
from coordinator.config import Config, EvaluationConfig
from coordinator.errors import ConfigError, JobError
from coordinator.history import EvaluationRow, History
from coordinator.jobs import Jobs, Line
from coordinator.report import EMULATOR, FULL
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.manifest import TaskType

LANE: Final = "evaluate"
KINDS: Final = (FULL, EMULATOR)


class Evaluator:
    """Starts what is to be measured; outcomes come through the jobs, as `EvaluationRow`."""

    def __init__(self, config: Config, held_out: EvaluationConfig, artifact: Artifact, jobs: Jobs) -> None:
        """Nothing is started yet."""
        self._config, self._held_out, self._artifact, self._jobs = config, held_out, artifact, jobs
        self._running: set[str] = set()
        self._prepared = False

    @property
    def tokens(self) -> pathlib.Path:
        """The held-out data as a folder of rows."""
        return self._config.out / "held-out"

    @property
    def pending(self) -> bool:
        """Whether something is being measured."""
        return bool(self._running)

    def start_missing(self, history: History) -> None:
        """Measure what the ledger has no losses of, oldest first; for the beginning."""
        for adapter in history.adapters:
            known = history.evaluated(adapter.version)
            for kind in KINDS:
                if kind not in known:
                    self._start(adapter.version, kind, Blob(adapter.sha256, adapter.size_bytes))

    def start(self, version: int, adapter: Blob) -> None:
        """Measure a new version."""
        for kind in KINDS:
            self._start(version, kind, adapter)

    def ended(self, job: str) -> bool:
        """A job has ended, well or badly; False for one that is none of ours."""
        ours = job in self._running
        self._running.discard(job)
        return ours

    def _start(self, version: int, kind: str, adapter: Blob) -> None:
        def work(say: Callable[[Line], None]) -> EvaluationRow:
            self._prepare(say)
            line = self._jobs.process(self._command(kind, adapter), say)
            loss = float(line["loss"])
            if not math.isfinite(loss):
                msg = f"the loss is {loss}"
                raise JobError(msg)
            return EvaluationRow(version, kind, loss, line.get("accuracy"), int(line["rows"]))

        job = f"held-out loss of adapter {version}, {kind}"
        self._running.add(job)
        self._jobs.start(job, LANE, work)

    def _prepare(self, say: Callable[[Line], None]) -> None:
        """Prepare the held-out data, once: all versions are measured on the same rows. One lane: nobody else does."""
        if self._prepared:
            return
        if not self._held_out.path.exists():
            msg = f"evaluation.path is {self._held_out.path}, which is not there"
            raise ConfigError(msg)
        self._jobs.process(self._prepare_command(), say)
        self._prepared = True

    def _prepare_command(self) -> list[str]:
        manifest, held_out = self._artifact.full.manifest, self._held_out
        tokenizer = None
        if manifest.tokenizer:
            tokenizer = self._artifact.store.path(manifest.files[manifest.tokenizer].sha256)
        model, image = manifest.model, manifest.model.image
        tokens = model.row_tokens(self._config.training.tokens)
        shape = "" if image is None else str(image)
        return prepare_command(held_out, model.task, tokenizer, tokens, model.labels, shape, self.tokens)

    def _command(self, kind: str, adapter: Blob) -> list[str]:
        store, artifact = self._artifact.store, self._artifact
        if kind == FULL:
            return full_command(self._config.model.dir, artifact.full.path, store.path(adapter.sha256), self.tokens)
        level = artifact.levels[self._config.levels[-1].name]
        here = adapter_at_rank(store, adapter, level.manifest.adapter.rank)
        return emulator_command(level.path, store.path(here.sha256), self.tokens)


def prepare_command(
    data: EvaluationConfig,
    task: TaskType,
    tokenizer: pathlib.Path | None,
    tokens: int,
    labels: Sequence[str],
    image: str,
    out: pathlib.Path,
) -> list[str]:
    """The process that makes `data` the folder of rows `out`; `image` is empty for a model of text."""
    words: list[Any] = ["--kind", data.kind.value, "--path", data.path, "--out", out]
    words += ["--tokens", tokens, "--max-rows", data.rows]
    words += ["--tokenizer", tokenizer] if tokenizer is not None else []
    words += [f"--text-column={data.text_column}", f"--label-column={data.label_column}"]
    if labels:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(labels)
        words.append(f"--labels={line.getvalue()}")
    words += ["--labels-tokens"] if task.labels_tokens else []
    words += [f"--image={image}"] if image else []
    return [sys.executable, "-m", "edge_sdk.prepare", *map(str, words)]


def full_command(
    model: pathlib.Path, manifest: pathlib.Path, adapter: pathlib.Path | None, rows: pathlib.Path
) -> list[str]:
    """The process that measures an adapter plugged into the full model; without one, the model as training starts."""
    words = [model, rows, "--manifest", manifest, *(["--adapter", adapter] if adapter is not None else [])]
    return [sys.executable, "-m", "export.cli", "evaluate", *map(str, words)]


def emulator_command(manifest: pathlib.Path, adapter: pathlib.Path | None, rows: pathlib.Path) -> list[str]:
    """The process that measures an adapter on the emulator that it was, or might be, trained on."""
    words = [manifest, *(["--adapter", adapter] if adapter is not None else []), "--data", rows]
    return [sys.executable, "-m", "edge_sdk.cli", "evaluate", *map(str, words)]
