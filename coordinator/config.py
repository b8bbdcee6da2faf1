"""`coordinator.toml` as frozen dataclasses; how it is read: `edge_sdk.wire.settings`."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import pathlib
from dataclasses import dataclass

from coordinator.course import MAX_DEVICES, Late, RoundsConfig
from coordinator.errors import ConfigError
from coordinator.guards import ChecksConfig, Estimator, PrivacyConfig, Where
from coordinator.pace import Pace
from coordinator.policy.settings import PolicyConfig
from coordinator.registry import Enrolment
from coordinator.rollout import RolloutConfig
from coordinator.secure.config import SecureConfig
from edge_sdk.wire.endpoint import TlsFiles, broker_url
from edge_sdk.wire.manifest import NAME, TaskType
from edge_sdk.wire.messages import (
    MAX_BATCH,
    MAX_SOURCES,
    MAX_STEPS,
    MAX_TOKENS,
    DeltaCodec,
    OptimizerKind,
    Schedule,
)
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.settings import SettingsError, matching, number, read_settings, text
from edge_sdk.wire.topics import DEVICE, FLEET, NAME_RULE
from edge_sdk.wire.transport import MAX_PACKET_BYTES, MIN_PACKET_BYTES
from edge_sdk.wire.web import base_url
from export.kinds import FACTORS
from export.levels import Drop, Refitting

AUTO = "auto"


def _url_or_auto(value: str) -> str:
    if value == AUTO:
        return value
    try:
        return broker_url(value)
    except ValueError as error:
        msg = f"{error}; or {AUTO}"
        raise ValueError(msg) from error


class Rule(enum.Enum):
    """How deltas become the next adapter; see `coordinator.aggregate`. A and B are never averaged apart.

    `auto` stands, in a file, for the first rule that fits the adapter.
    """

    AUTO = "auto"
    LORA_SVD = "lora-svd"
    FREEZE_A = "freeze-a"
    MEAN = "mean"

    @property
    def keeps_coordinates(self) -> bool:
        """Whether a number of the adapter means in the next round what it meant in this one; an SVD rotates them."""
        return self in {Rule.FREEZE_A, Rule.MEAN}


class MeanOver(enum.Enum):
    """Whose results a tensor's change is averaged over: those that trained it, or all of the round's."""

    TRAINED = "trained"
    ALL = "all"


class ServerOptimizer(enum.Enum):
    """How the adapter moves by the mean change; see `coordinator.aggregate.server_optimizers`."""

    FEDAVG = "fedavg"
    FEDAVGM = "fedavgm"
    FEDADAM = "fedadam"


class DataKind(enum.Enum):
    """What the coordinator's own data is, with the names that devices use for theirs."""

    TEXT_FOLDER = "text-folder"
    CSV = "csv"
    JSON_LINES = "json-lines"
    TOKEN_ARRAYS = "token-arrays"  # noqa: S105 - tokens of a text
    IMAGE_FILES = "image-files"
    IMAGE_ARRAYS = "image-arrays"
    IDX = "idx"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """`url` is `mqtts://host:port`, `mqtt://host:port`, or `auto`: a broker on this machine, of the coordinator's own.

    `tls` has the files for mqtts. `max_packet_bytes` is what the broker takes, for one that cannot say so itself.
    """

    url: str = text(_url_or_auto, AUTO)
    tls: TlsFiles | None = None
    max_packet_bytes: int = number(MIN_PACKET_BYTES, MAX_PACKET_BYTES, MAX_PACKET_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustConfig:
    """Who belongs to the fleet. `folder` has the coordinator's key and its devices'; by default it is `trust` in `out`.

    Runs of one fleet share it: devices obey the key in it, and no other.
    """

    enrolment: Enrolment = Enrolment.OPEN
    folder: pathlib.Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The foundation model: a Hugging Face folder. `labels` name the classes of a classification, by index."""

    dir: pathlib.Path
    task: TaskType
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The adapter: its kind, one of `export.kinds`, and what that takes; the family's own choice without `targets`.

    `rank` and `alpha` are LoRA's; `first` and `last` how many of the first and the last blocks train in one of kind
    `layers`; `length` how many tokens each block gets in one of kind `prompt` or `prefix`. `start` is the checkpoint
    of a run of kind `sparse`, from whose changes LoRA's factors begin: SLoRA's second stage.
    """

    kind: str = "lora"
    rank: int = number(1, 1024, 8)
    alpha: float = number(0.001, 1e6, 16.0)
    targets: tuple[str, ...] = ()
    last: int = number(0, 10_000, 0)
    first: int = number(0, 10_000, 0)
    length: int = number(0, 1024, 0)
    start: pathlib.Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelConfig:
    """One emulator level: `bits` per frozen weight, `layers` kept and `train_last` trained (0: all of them).

    `rank` is that of LoRA's factors there (0: the adapter's own, which is the highest); `quality` the share of what
    tuning the model itself gains that tuning at this level does, as a ladder measured it: for policies alone. The
    others as in `export.levels.LevelRequest`, `distill_rate` 0: what suits, `tensors_mb` 0: no bound.
    """

    name: str = matching(NAME, "letters, digits, dot, dash, underscore, at most 128")
    bits: int = 32
    layers: int = number(0, 10_000, 0)
    train_last: int = number(0, 10_000, 0)
    rank: int = number(0, 1024, 0)
    drop: Drop = Drop.UNIFORM
    ffn: float = number(0.001, 1, 1.0)
    svd: tuple[str, ...] = ()
    svd_rank: int = number(0, 100_000, 0)
    refit: Refitting = Refitting.NONE
    distill_steps: int = number(1, 10_000_000, 100)
    distill_rate: float = number(0, 1, 0.0)
    tensors_mb: float = number(0, 1e9, 0.0)
    quality: float = number(0, 1, 1.0)

    @property
    def needs_public(self) -> bool:
        """Whether it is chosen or refitted by public data."""
        return self.refit is not Refitting.NONE or self.drop is not Drop.UNIFORM or self.tensors_mb > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicConfig:
    """Public data at `path`, of which `rows` rows are used, for levels that are chosen or refitted by it.

    A folder of .txt, a .csv with a `text_column`, a token folder; or pictures, as in `export.public.PublicRequest`.
    """

    path: pathlib.Path
    text_column: str = "text"
    rows: int = number(1, 1_000_000, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What each device does in a round; fields as in `edge_sdk.wire.messages.Task`. `tokens` matter to text alone."""

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
    delta_codec: DeltaCodec = DeltaCodec.FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """How fast blobs and deltas go, both ways together, in megabytes (10^6 bytes) per second; 0: as fast as they can.

    `megabytes_s` is for all devices, who share it evenly, `device_megabytes_s` for each of them. With `broadcast` what
    several devices want at a time is sent to all of them once. `sources` are web servers that give what is in the run's
    `artifact/blobs`; devices ask them first, in this order.
    """

    megabytes_s: float = number(0, 1e6, 0)
    device_megabytes_s: float = number(0, 1e6, 0)
    broadcast: bool = False
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what devices would not ask. Raises ValueError."""
        for url in self.sources:
            base_url(url)
        if len(self.sources) > MAX_SOURCES:
            msg = f"at most {MAX_SOURCES} sources"
            raise ValueError(msg)

    def pace(self) -> Pace:
        """The same, to be kept."""
        return Pace(self.megabytes_s * 1e6, self.device_megabytes_s * 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """How deltas become the next adapter. A delta longer than `clip_norm` is scaled down to it; 0: none is.

    `estimator` is what is taken of a round's deltas; beside the mean, it withstands `byzantine` of them that lie.

    `learning_rate` is the server's: 1, unless it is given. `beta1` is the momentum of fedavgm and fedadam, `beta2` and
    `tau` are fedadam's.
    """

    rule: Rule = Rule.AUTO
    mean_over: MeanOver = MeanOver.TRAINED
    estimator: Estimator = Estimator.MEAN
    byzantine: int = number(0, MAX_DEVICES, 0)
    clip_norm: float = number(0, 1e9, 0)
    optimizer: ServerOptimizer = ServerOptimizer.FEDAVG
    learning_rate: float | None = number(1e-6, 100, None)
    beta1: float = number(0, 0.9999, 0.9)
    beta2: float = number(0, 0.9999, 0.99)
    tau: float = number(1e-9, 1, 1e-3)

    @property
    def rate(self) -> float:
        """How far the adapter goes along the optimizer's direction."""
        return 1.0 if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Held-out data at `path`, of which at most `rows` rows are used; text and label columns matter to `csv` alone."""

    path: pathlib.Path
    kind: DataKind = DataKind.TEXT_FOLDER
    rows: int = number(1, 1_000_000, 64)
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantConfig:
    """This machine as one more device of the fleet, called `device`, on public data at `path`.

    `budget` and `quota`, sizes like 256MB, and the data's fields are as in `device.toml`. `threads` 0: all cores. It
    counts among `rounds.devices`, and no round opens without it. `tls` has its certificate, where the broker wants one:
    its own, in its own name.
    """

    budget: str
    path: pathlib.Path
    kind: DataKind = DataKind.TEXT_FOLDER
    text_column: str = "text"
    label_column: str = "label"
    device: str = matching(DEVICE, NAME_RULE, "server")
    threads: int = number(0, 256, 0)
    quota: str = "8GB"
    tls: TlsFiles | None = None


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
    trust: TrustConfig = TrustConfig()
    adapter: AdapterConfig = AdapterConfig()
    transfer: TransferConfig = TransferConfig()
    aggregation: AggregationConfig = AggregationConfig()
    checks: ChecksConfig = dataclasses.field(default_factory=ChecksConfig)
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    evaluation: EvaluationConfig | None = None
    public: PublicConfig | None = None
    participant: ParticipantConfig | None = None
    privacy: PrivacyConfig | None = None
    rollout: RolloutConfig | None = None
    secure: SecureConfig | None = None

    @property
    def central_privacy(self) -> PrivacyConfig | None:
        """The noise that the coordinator adds; None where devices do, or nobody."""
        return self.privacy if self.privacy is not None and self.privacy.where is Where.COORDINATOR else None

    @property
    def example_noise(self) -> ExampleNoise | None:
        """The noise that devices add to their steps."""
        if self.privacy is None or self.privacy.where is Where.COORDINATOR:
            return None
        return ExampleNoise(self.privacy.clip_norm, self.privacy.noise_multiplier)

    def digest(self) -> str:
        """What makes two configurations the same run: all but where it runs, with whom, and how it waits.

        A run may be continued on another broker or with more patience, and may be made longer.
        """
        essence = dataclasses.replace(
            self,
            out=pathlib.Path(),
            broker=BrokerConfig(),
            transfer=TransferConfig(),
            trust=TrustConfig(),
            participant=None,
            rounds=_what_counts(self.rounds),
            model=dataclasses.replace(self.model, dir=self.model.dir.resolve()),
        )
        return hashlib.sha256(json.dumps(dataclasses.asdict(essence), default=_as_json).encode()).hexdigest()


def _what_counts(rounds: RoundsConfig) -> RoundsConfig:
    """Of when rounds open and close, what decides which results are in an adapter, and with which weight."""
    one = RoundsConfig(count=1, devices=1)
    if not rounds.discounts:
        return one
    most, exponent = rounds.max_staleness, rounds.staleness_exponent
    return dataclasses.replace(
        one, mode=rounds.mode, late=Late.DISCOUNT, max_staleness=most, staleness_exponent=exponent
    )


def load_config(path: pathlib.Path) -> Config:
    """Read `path`. Raises ConfigError with one line."""
    try:
        config = read_settings(Config, path)
    except SettingsError as error:
        raise ConfigError(str(error)) from error
    return checked(config, f"{path}: ")


def checked(config: Config, where: str) -> Config:
    """The configuration, with the rule that `auto` stands for. Raises ConfigError, with `where` before its line."""
    from coordinator.complaints import complaints  # it asks us what a configuration is

    if config.aggregation.rule is Rule.AUTO:
        rule = rules_for(config.adapter.kind)[0]
        config = dataclasses.replace(config, aggregation=dataclasses.replace(config.aggregation, rule=rule))
    for complaint, applies in complaints(config).items():
        if applies:
            msg = f"{where}{complaint}"
            raise ConfigError(msg)
    return config


def rules_for(kind: str) -> tuple[Rule, ...]:
    """The rules that an adapter of this kind can be aggregated by. A mean of factors is no mean of what they make."""
    return (Rule.LORA_SVD, Rule.FREEZE_A) if kind in FACTORS else (Rule.MEAN,)


def _as_json(value: object) -> str:
    return value.value if isinstance(value, enum.Enum) else str(value)
