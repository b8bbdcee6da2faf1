"""`coordinator.toml` as frozen dataclasses; how it is read: `edge_sdk.wire.settings`."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import pathlib
from dataclasses import dataclass

from coordinator.errors import ConfigError
from edge_sdk.wire.manifest import BITS, NAME, TaskType
from edge_sdk.wire.messages import MAX_BATCH, MAX_STEPS, MAX_TOKENS, OptimizerKind, Schedule
from edge_sdk.wire.settings import SettingsError, matching, number, read_settings
from edge_sdk.wire.topics import FLEET, NAME_RULE
from export.levels import Drop

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
    rank: int = number(1, 1024, 8)
    alpha: float = number(0.001, 1e6, 16.0)
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelConfig:
    """One emulator level: `bits` per frozen weight, `layers` kept and `train_last` trained (0: all of them).

    The others as in `export.levels.LevelRequest`; `tensors_mb` 0: no bound.
    """

    name: str = matching(NAME, "letters, digits, dot, dash, underscore, at most 128")
    bits: int = 32
    layers: int = number(0, 10_000, 0)
    train_last: int = number(0, 10_000, 0)
    drop: Drop = Drop.UNIFORM
    ffn: float = number(0.001, 1, 1.0)
    svd: tuple[str, ...] = ()
    svd_rank: int = number(0, 100_000, 0)
    refit: bool = False
    tensors_mb: float = number(0, 1e9, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicConfig:
    """Public data at `path`, of which `rows` rows are used, for levels that are chosen or refitted by it.

    A folder of .txt, a .csv with a `text_column`, or a token folder.
    """

    path: pathlib.Path
    text_column: str = "text"
    rows: int = number(1, 1_000_000, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """When a round opens and closes.

    The first round waits up to `wait_s` for `devices` of them, and then for `min_devices` as long as it takes. A round
    closes when every device that took part has answered, or after `deadline_s`; with fewer than `quorum` results it is
    repeated, at most `attempts` times in all.
    """

    count: int = number(1, 100_000)
    devices: int = number(1, MAX_DEVICES)
    min_devices: int = number(1, MAX_DEVICES, 1)
    quorum: int = number(1, MAX_DEVICES, 1)
    deadline_s: float = number(1, WEEK_S, 600)
    wait_s: float = number(0, WEEK_S, 60)
    attempts: int = number(1, 1000, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What each device does in a round; fields as in `edge_sdk.wire.messages.Task`."""

    steps: int = number(1, MAX_STEPS)
    batch: int = number(1, MAX_BATCH, 1)
    tokens: int = number(1, MAX_TOKENS, 128)
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float = number(0, 100, 1e-3)
    weight_decay: float = number(0, 1, 0)
    schedule: Schedule = Schedule.CONSTANT
    warmup_steps: int = number(0, MAX_STEPS, 0)
    clip_norm: float = number(0, 1e9, 1)
    seed: int = number(0, 1 << 31, 0)
    integer_gradients: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """How deltas become the next adapter. A delta longer than `clip_norm` is scaled down to it; 0: none is."""

    rule: Rule = Rule.LORA_SVD
    clip_norm: float = number(0, 1e9, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Who decides."""

    name: PolicyName = PolicyName.LARGEST_THAT_FITS


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Held-out data at `path`, of which at most `rows` rows are used; text and label columns matter to `csv` alone."""

    path: pathlib.Path
    kind: HeldOutKind = HeldOutKind.TEXT_FOLDER
    rows: int = number(1, 1_000_000, 64)
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of `coordinator.toml`. `out` is the run's folder: artifact, ledger, report."""

    name: str
    fleet: str = matching(FLEET, NAME_RULE)
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
    public: PublicConfig | None = None

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
        config = read_settings(Config, path)
    except SettingsError as error:
        raise ConfigError(str(error)) from error
    for complaint, applies in _complaints(config).items():
        if applies:
            msg = f"{path}: {complaint}"
            raise ConfigError(msg)
    return config


def _complaints(config: Config) -> dict[str, bool]:
    """What no single value shows, and whether it applies here."""
    names = [level.name for level in config.levels]
    task, rounds = config.model.task, config.rounds
    complaints = {
        "at least one [[levels]] table is needed": not names,
        f"levels share a name: {', '.join(names)}": len(set(names)) != len(names),
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
        allowed = ", ".join(map(str, BITS))
        complaints[f"levels.{level.name}.bits is {level.bits}; allowed: {allowed}"] = level.bits not in BITS
        trained_too_many = 0 < level.layers < level.train_last
        complaints[f"levels.{level.name} trains more layers than it keeps"] = trained_too_many
        needs_public = level.refit or level.drop is Drop.IMPORTANCE or level.tensors_mb > 0
        complaints[f"levels.{level.name} needs a [public] table with a path"] = needs_public and config.public is None
    return complaints


def _as_json(value: object) -> str:
    return value.value if isinstance(value, enum.Enum) else str(value)
