"""`coordinator.toml` as frozen dataclasses: one per table, every limit stated, units in the names.

Rules of reading:

- an unknown key is an error that lists the known ones: a misspelt option must not be a silent default;
- a value has the type its field says (whole numbers pass for fractions, nothing else converts);
- a number out of range is an error that states the range;
- paths are relative to the file that names them.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import pathlib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from coordinator.errors import ConfigError
from edge_sdk.wire.errors import why_unreadable
from edge_sdk.wire.manifest import NAME, TaskType
from edge_sdk.wire.messages import MAX_BATCH, MAX_STEPS, MAX_TOKENS, OptimizerKind, Schedule
from edge_sdk.wire.topics import FLEET

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

MAX_DEVICES = 10_000
WEEK_S = 7 * 24 * 3600.0


class Rule(enum.Enum):
    """How deltas become the next adapter; see `coordinator.aggregate`. A and B are never averaged apart."""

    LORA_SVD = "lora-svd"
    FREEZE_A = "freeze-a"


class PolicyName(enum.Enum):
    """Who gets which level; see `coordinator.policy`."""

    LARGEST_THAT_FITS = "largest-that-fits"


class HeldOutKind(enum.Enum):
    """What the held-out data is, with the names that devices use for theirs."""

    TEXT_FOLDER = "text-folder"
    CSV = "csv"
    TOKEN_ARRAYS = "token-arrays"  # noqa: S105 - tokens of a text


def _number(low: float, high: float, default: float | None = None) -> Any:  # noqa: ANN401 - what `field` returns
    """A field that must lie from `low` to `high`; without a `default` it must be given."""
    metadata = {"range": (low, high)}
    if default is None:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """`url` is `mqtt://host:port`, or `auto`: a broker on this machine, started and ended with the coordinator."""

    url: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The foundation model: a Hugging Face folder. `labels` name the classes of a classification, by index."""

    dir: pathlib.Path
    task: TaskType
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The adapter as peft would configure it. No `targets`: peft's own choice for the family."""

    kind: str = "lora"
    rank: int = _number(1, 1024, 8)
    alpha: float = _number(0.001, 1e6, 16.0)
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelConfig:
    """One emulator level: `bits` per frozen weight, `layers` kept and `train_last` trained (0: all of them)."""

    name: str
    bits: int = 32
    layers: int = _number(0, 10_000, 0)
    train_last: int = _number(0, 10_000, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """When a round opens and closes.

    The first round waits up to `wait_s` for `devices` of them, and then for `min_devices` as long as it takes. A round
    closes when every device that took part has answered, or after `deadline_s`; with fewer than `quorum` results it is
    repeated, at most `attempts` times in all.
    """

    count: int = _number(1, 100_000)
    devices: int = _number(1, MAX_DEVICES)
    min_devices: int = _number(1, MAX_DEVICES, 1)
    quorum: int = _number(1, MAX_DEVICES, 1)
    deadline_s: float = _number(1, WEEK_S, 600)
    wait_s: float = _number(0, WEEK_S, 60)
    attempts: int = _number(1, 1000, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What each device does in a round; fields as in `edge_sdk.wire.messages.Task`."""

    steps: int = _number(1, MAX_STEPS)
    batch: int = _number(1, MAX_BATCH, 1)
    tokens: int = _number(1, MAX_TOKENS, 128)
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float = _number(0, 100, 1e-3)
    weight_decay: float = _number(0, 1, 0)
    schedule: Schedule = Schedule.CONSTANT
    warmup_steps: int = _number(0, MAX_STEPS, 0)
    clip_norm: float = _number(0, 1e9, 1)
    seed: int = _number(0, 1 << 31, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """How deltas become the next adapter. A delta longer than `clip_norm` is scaled down to it; 0: none is."""

    rule: Rule = Rule.LORA_SVD
    clip_norm: float = _number(0, 1e9, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Who decides."""

    name: PolicyName = PolicyName.LARGEST_THAT_FITS


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Held-out data at `path`, of which at most `rows` rows are used; text and label columns matter to `csv` alone."""

    path: pathlib.Path
    kind: HeldOutKind = HeldOutKind.TEXT_FOLDER
    rows: int = _number(1, 1_000_000, 64)
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of `coordinator.toml`. `out` is the run's folder: artifact, ledger, report."""

    name: str
    fleet: str
    out: pathlib.Path
    model: ModelConfig
    levels: tuple[LevelConfig, ...]
    rounds: RoundsConfig
    training: TrainingConfig
    broker: BrokerConfig = BrokerConfig()
    adapter: AdapterConfig = AdapterConfig()
    aggregation: AggregationConfig = AggregationConfig()
    policy: PolicyConfig = PolicyConfig()
    evaluation: EvaluationConfig | None = None

    def digest(self) -> str:
        """What makes two configurations the same run: all but where it runs and how it waits.

        A run may be continued on another broker or with more patience, and may be made longer.
        """
        essence = dataclasses.replace(
            self,
            out=pathlib.Path(),
            broker=BrokerConfig(),
            rounds=RoundsConfig(count=1, devices=1),
            model=dataclasses.replace(self.model, dir=self.model.dir.resolve()),
        )
        return hashlib.sha256(json.dumps(dataclasses.asdict(essence), default=_as_json).encode()).hexdigest()


def load_config(path: pathlib.Path) -> Config:
    """Read `path`. Raises ConfigError with one line."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{path}: cannot be read: {why_unreadable(error)}"
        raise ConfigError(msg) from error
    try:
        config = _read_table(Config, table, "", path.parent)
        _check(config)
    except ConfigError as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error
    return config


def _check(config: Config) -> None:
    """What no single value shows."""
    names = [level.name for level in config.levels]
    wrong_names = [name for name in names if not NAME.fullmatch(name)]
    task, rounds = config.model.task, config.rounds
    complaints = {
        f"fleet is {config.fleet!r}; letters, digits, dot, dash, underscore, at most 64": not FLEET.fullmatch(
            config.fleet
        ),
        "at least one [[levels]] table is needed": not names,
        f"levels share a name: {', '.join(names)}": len(set(names)) != len(names),
        f"level names are letters, digits, dot, dash, underscore: {wrong_names}": bool(wrong_names),
        f"adapter.kind is {config.adapter.kind!r}; allowed: lora": config.adapter.kind != "lora",
        "model.labels are needed, two or more, for sequence-classification": (
            task is TaskType.SEQUENCE_CLASSIFICATION and len(config.model.labels) < 2  # noqa: PLR2004 - a choice needs two
        ),
        "model.labels are for sequence-classification": task is TaskType.CAUSAL_LM and bool(config.model.labels),
        f"rounds.min_devices is {rounds.min_devices}, more than rounds.devices": rounds.min_devices > rounds.devices,
        f"rounds.quorum is {rounds.quorum}, more than rounds.devices": rounds.quorum > rounds.devices,
        "training.warmup_steps is more than training.steps": config.training.warmup_steps > config.training.steps,
    }
    for level in config.levels:
        complaints[f"levels.{level.name}.bits is {level.bits}; allowed: 32, 8"] = level.bits not in {32, 8}
        trained_too_many = 0 < level.layers < level.train_last
        complaints[f"levels.{level.name} trains more layers than it keeps"] = trained_too_many
    for complaint, applies in complaints.items():
        if applies:
            raise ConfigError(complaint)


def _read_table(kind: type[T], table: object, where: str, base: pathlib.Path) -> T:
    if not isinstance(table, Mapping):
        msg = f"{where} must be a table, [{where}]"
        raise ConfigError(msg)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast("Any", kind))}
    for key in table:
        if key not in fields:
            msg = f"unknown key {_join(where, key)!r}; allowed here: {', '.join(fields)}"
            raise ConfigError(msg)
    missing = [f.name for f in fields.values() if f.name not in table and f.default is dataclasses.MISSING]
    if missing:
        msg = f"{_join(where, missing[0])} is missing"
        raise ConfigError(msg)
    values = {key: _read(hints[key], value, _join(where, key), base) for key, value in table.items()}
    for key, value in values.items():
        _check_range(fields[key], value, _join(where, key))
    return kind(**values)


def _read(kind: Any, value: Any, where: str, base: pathlib.Path) -> object:  # noqa: ANN401, PLR0911 - one per kind
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return _read(arguments[0], value, where, base)
    if dataclasses.is_dataclass(kind):
        return _read_table(typing.cast("type", kind), value, where, base)
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_read(arguments[0], item, f"{where}[{k}]", base) for k, item in enumerate(items))
    if issubclass(kind, enum.Enum):
        allowed = [member.value for member in kind]
        if value not in allowed:
            msg = f"{where} is {value!r}; allowed: {', '.join(allowed)}"
            raise ConfigError(msg)
        return kind(value)
    if kind is pathlib.Path:
        return base / pathlib.Path(_expect(str, value, where)).expanduser()
    if kind is float:
        return float(_expect((int, float), value, where))
    return _expect(kind, value, where)


def _expect(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - checks a value of any type against any type
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
        msg = f"{where} is {value!r}, it must be {names[kinds[-1]]}"
        raise ConfigError(msg)
    return value


def _check_range(field: dataclasses.Field[Any], value: object, where: str) -> None:
    if "range" not in field.metadata or not isinstance(value, (int, float)):
        return
    low, high = field.metadata["range"]
    if not low <= value <= high:  # also refuses nan
        msg = f"{where} is {value}, it must be from {low:g} to {high:g}"
        raise ConfigError(msg)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _as_json(value: object) -> str:
    return value.value if isinstance(value, enum.Enum) else str(value)
