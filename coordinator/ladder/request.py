"""What is asked for on the command line -> a coordinator's configuration whose levels are to be measured."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from coordinator.config import Config, LevelConfig, ModelConfig, PublicConfig, checked
from coordinator.errors import ConfigError
from coordinator.jobs import Jobs
from edge_sdk.wire.manifest import TaskType
from edge_sdk.wire.settings import SettingsError, read_settings, settings_of
from export.levels import Drop, Refitting

REFERENCE: Final = "fp32"
MB: Final = 1e6
STEP: Final = 1.17  # in bytes, of mixes of 8 and 4 bits: from one to the next a third of the bytes is to be new
SOLVED: Final = Refitting.LEAST_SQUARES
DEPTH_SHARES: Final = (0.75, 0.5)


@dataclass(frozen=True, slots=True)
class Description:
    """What `fedpeat describe` says of a model folder: bytes of all weights by bits, `image` empty for one of text."""

    layers: int
    max_tokens: int
    labels: tuple[str, ...]
    image: str
    tokenizer: bool
    weights_bytes: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelsFile:
    """A file of levels, as a coordinator's configuration has them; what this command writes is one, too."""

    levels: tuple[LevelConfig, ...]
    public: PublicConfig | None = None


def describe(model: ModelConfig, jobs: Jobs) -> Description:
    """Look at the model, in a process of its own. Raises JobError for one that cannot be exported."""
    words = ["describe", str(model.dir), "--task", model.task.value]
    words += ["--labels", ",".join(model.labels)] if model.labels else []
    plain = jobs.process([sys.executable, "-m", "export.cli", *words], lambda _line: None)
    return Description(
        layers=plain["layers"],
        max_tokens=plain["max_tokens"],
        labels=tuple(plain["labels"]),
        image=plain["image"] or "",
        tokenizer=plain["tokenizer"],
        weights_bytes={int(bits): size for bits, size in plain["weights_bytes"].items()},
    )


def read_levels(path: pathlib.Path) -> LevelsFile:
    """Raises ConfigError."""
    try:
        return read_settings(LevelsFile, path)
    except SettingsError as error:
        raise ConfigError(str(error)) from error


def without_levels(tables: Mapping[str, Any]) -> Config:
    """The configuration of tables that lack levels alone. Raises ConfigError."""
    try:
        return settings_of(Config, {**tables, "levels": []}, pathlib.Path())
    except SettingsError as error:
        raise ConfigError(str(error)) from error


def configuration(asked: Config, model: Description, given: LevelsFile | None) -> Config:
    """What is asked for with those levels that are given, else with the default ones, and with the model's labels.

    The first level is the full model itself, which all are measured against. Raises ConfigError.
    """
    labels = () if asked.model.task is TaskType.CAUSAL_LM else model.labels
    config = dataclasses.replace(
        asked,
        model=dataclasses.replace(asked.model, labels=labels),
        levels=default_levels(model) if given is None else with_reference(given.levels),
        public=asked.public if given is None else given.public or asked.public,
    )
    return checked(config, "")


def default_levels(model: Description) -> tuple[LevelConfig, ...]:
    """A ladder to begin with: precision, mixes of precision, and depth."""
    in_full, most, least = (model.weights_bytes[bits] for bits in (32, 8, 4))
    steps = max(1, math.ceil(math.log(most / least, STEP)))
    mixes = [most * (least / most) ** (k / steps) for k in range(1, steps)]
    depths = sorted({max(1, round(model.layers * share)) for share in DEPTH_SHARES} - {model.layers}, reverse=True)
    return (
        LevelConfig(name=REFERENCE),
        LevelConfig(name="int8", bits=8),
        *(
            LevelConfig(name=f"mixed{size / in_full:.0%}"[:-1], bits=8, tensors_mb=round(size / MB, 3), refit=SOLVED)
            for size in mixes
        ),
        LevelConfig(name="int4", bits=4, refit=SOLVED),
        *(level for keep in depths for level in _of_depth(keep)),
    )


def _of_depth(keep: int) -> tuple[LevelConfig, ...]:
    """Plain uniform drop, and what a choice of layers and a refit make of as many."""
    plain = LevelConfig(name=f"int8-{keep}layers-plain", bits=8, layers=keep)
    name = f"int8-{keep}layers"
    return plain, dataclasses.replace(plain, name=name, drop=Drop.IMPORTANCE, refit=SOLVED)


def with_reference(levels: tuple[LevelConfig, ...]) -> tuple[LevelConfig, ...]:
    """The levels, and before all others one that is the full model. Raises ConfigError where its name is taken."""
    found = [level for level in levels if is_reference(level)] or [LevelConfig(name=REFERENCE)]
    others = [level for level in levels if not is_reference(level)]
    if any(level.name == found[0].name for level in others):
        msg = f"level {REFERENCE} is not the full model in 32 bits, which all are measured against: call it otherwise"
        raise ConfigError(msg)
    return (found[0], *others)


def is_reference(level: LevelConfig) -> bool:
    """Whether the emulator is the full model itself, all of it trained."""
    return dataclasses.replace(level, name=REFERENCE) == LevelConfig(name=REFERENCE)
