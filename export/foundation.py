"""A model folder, as transformers' `save_pretrained` writes it -> the model, its family and its sizes.

Class and sizes are resolved by optimum (`TasksManager`, `NormalizedConfigManager`): no family file repeats them.
"""

from __future__ import annotations

import copy
import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from optimum.exporters.tasks import TasksManager
from safetensors import SafetensorError
from torch import nn

from edge_sdk.wire.manifest import Manifest, ModelSpec, TaskType
from export.errors import ExportError, UnsupportedError
from export.families import Family, family_of
from export.kinds import beside
from export.parts import backbone_of, classify_last_token, sizes_of
from export.patches import see_images, stretch_positions
from export.tasks import TASKS

NEW_WITH_THE_TASK = ("pre_classifier", "classifier", "score")  # what a checkpoint may lack: the adapter brings it


@dataclass(frozen=True, slots=True)
class Foundation:
    """A model folder that was looked at and not yet loaded.

    `config` is transformers' configuration with our labels, of a vision model also with what `see_images` adds.
    """

    folder: pathlib.Path
    family: Family
    spec: ModelSpec
    config: Any

    @property
    def tokenizer(self) -> pathlib.Path | None:
        """The folder's tokenizer file, where it has one."""
        path = self.folder / "tokenizer.json"
        return path if path.is_file() else None

    @property
    def padding(self) -> int:
        """The id that transformers takes for padding, 0 where the configuration names none of the vocabulary."""
        found = self.config.pad_token_id
        return found if _is_token(found, self.spec.vocabulary) else 0

    @property
    def dropout(self) -> dict[str, float]:
        """What the configuration says of dropout, and what is exported lacks: the chances that are not zero."""
        settings = self.config.to_dict().items()
        return {name: value for name, value in settings if "drop" in name and isinstance(value, float) and value > 0}

    def skeleton(self) -> nn.Module:
        """The model without numbers: shapes alone."""
        with torch.device("meta"), quiet():
            found: nn.Module = self._model_class().from_config(self.config)
        return found

    def load(self, seed: int = 0) -> nn.Module:
        """The model in float32, in evaluation mode; `seed` draws what the checkpoint lacks (a new classifier).

        Raises ExportError when there are no weights, or weights of another model.
        """
        self.config.use_cache = False  # nothing here generates, and a cache counts layers: an emulator has fewer
        self.config.architectures = []  # of several heads that a type may have, transformers then takes the first
        config, size = self.config, getattr(self.config, "trained_size", None)
        if size is not None:  # the weights are of that size
            config = copy.deepcopy(config)
            config.image_size = list(size)
        with seeded(seed), quiet():
            try:
                model, report = self._model_class().from_pretrained(
                    self.folder,
                    config=config,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    local_files_only=True,
                    output_loading_info=True,
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                msg = f"cannot load the weights in {self.folder}: {first_line(error)}"
                raise ExportError(msg) from error
        if missing := sorted(k for k in report["missing_keys"] if k.partition(".")[0] not in NEW_WITH_THE_TASK):
            msg = f"the weights in {self.folder} lack {len(missing)} tensors of the model, the first is {missing[0]}"
            raise ExportError(msg)
        if size is not None and list(size) != self.config.image_size:
            model.config.image_size = self.config.image_size
            stretch_positions(backbone_of(model))
        loaded: nn.Module = model.eval()
        return loaded

    def _model_class(self) -> Any:  # noqa: ANN401 - one of transformers' automatic classes
        return TasksManager.get_model_class_for_task(TASKS[self.spec.task].optimum, framework="pt")


def open_foundation(folder: pathlib.Path, task: TaskType, labels: tuple[str, ...]) -> Foundation:
    """Look at a model folder.

    `labels` names the classes of a classifier by index; where it is empty, the folder's own are taken.

    Raises:
        ExportError: there is no such folder, or it is no model folder, or the labels do not fit the task.
        UnsupportedError: family or task is not one that export knows.
    """
    config = _read_config(folder)
    family = family_of(config.model_type)
    if task not in family.tasks:
        msg = f"{family.name} is supported for {', '.join(t.value for t in family.tasks)}, not for {task.value}"
        raise UnsupportedError(msg)
    image = see_images(config, folder) if task is TaskType.IMAGE_CLASSIFICATION else None
    if why := family.check(config):
        raise UnsupportedError(why)
    labels = _apply_labels(config, task, labels)
    sizes = sizes_of(config)
    if family.heads[task] is classify_last_token and not _is_token(config.pad_token_id, sizes.vocab_size):
        msg = f"{folder / 'config.json'} has no pad_token_id, by which transformers finds a row's last token: give one"
        raise ExportError(msg)
    spec = ModelSpec(
        family=family.name,
        task=task,
        layers=sizes.num_layers,
        width=sizes.hidden_size,
        vocabulary=0 if image is not None else sizes.vocab_size,
        labels=labels,
        max_tokens=family.max_tokens(config),
        image=image,
    )
    return Foundation(folder, family, spec, config)


def open_same_foundation(folder: pathlib.Path, manifest: Manifest) -> Foundation:
    """Look at the model folder that an artifact was made of. Raises ExportError when it is of another kind or size."""
    foundation = open_foundation(folder, manifest.model.task, manifest.model.labels)
    if beside(manifest.adapter, foundation.spec) != manifest.model:
        msg = f"{folder} is not the model that level {manifest.level.name} was made of: {foundation.spec}"
        raise ExportError(msg)
    return foundation


def _read_config(folder: pathlib.Path) -> Any:  # noqa: ANN401 - transformers' configurations are typed by attribute
    if not folder.is_dir():
        msg = f"there is no model folder {folder}"
        raise ExportError(msg)
    if not (folder / "config.json").is_file():
        msg = f"{folder} has no config.json: give a folder as save_pretrained writes it"
        raise ExportError(msg)
    try:
        plain, _ = transformers.PretrainedConfig.get_config_dict(folder, local_files_only=True)
        # Before transformers, whose answer to an unknown type fills a screen.
        family_of(str(plain.get("model_type")), plain)
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        msg = f"cannot read {folder / 'config.json'}: {first_line(error)}"
        raise ExportError(msg) from error


def _is_token(token: int | None, vocabulary: int) -> bool:
    return token is not None and 0 <= token < vocabulary  # Llama's configurations have -1, or one too many


def _apply_labels(config: Any, task: TaskType, labels: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ANN401
    if not task.classifies:
        if labels:
            msg = f"labels are for a classification, a {task.value} has none"
            raise ExportError(msg)
        return ()
    labels = labels or tuple(config.id2label[k] for k in sorted(config.id2label))
    if len(labels) < 2 or len(set(labels)) != len(labels):  # noqa: PLR2004 - one class is no choice
        msg = f"{len(labels)} labels {labels!r}: give two or more different ones"
        raise ExportError(msg)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    return labels


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random numbers from `seed`, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and peft from reporting what we report ourselves, and from deprecation warnings."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.enable_progress_bar()
        transformers.logging.set_verbosity(verbosity)


def first_line(error: BaseException) -> str:
    """A foreign exception's first line: theirs run over several."""
    return next(iter(str(error).splitlines()), type(error).__name__)
