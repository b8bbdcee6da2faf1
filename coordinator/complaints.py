"""What a configuration cannot be though each of its values can be so: a line each, which says what is wrong."""

from __future__ import annotations

import dataclasses

from coordinator import privacy_complaints
from coordinator.config import AggregationConfig, Config, LevelConfig, Rule, ServerOptimizer, rules_for
from coordinator.course import Mode
from coordinator.guards import Estimator
from coordinator.policy.settings import policy_complaints
from coordinator.secure.complaints import secure_complaints
from edge_sdk.wire.codecs import NEEDS_RESIDUAL
from edge_sdk.wire.manifest import BITS
from edge_sdk.wire.messages import DeltaCodec
from export.kinds import why_no_start, why_not


def complaints(config: Config) -> dict[str, bool]:
    """What no single value shows, and whether it applies here."""
    names = [level.name for level in config.levels]
    task, adapter, rule = config.model.task, config.adapter, config.aggregation.rule
    codec, rules = config.training.delta_codec, rules_for(adapter.kind)
    no_adapter, no_start = why_not(adapter.kind, dataclasses.asdict(adapter), task), why_no_start(adapter.kind)
    complaints = {
        "at least one [[levels]] table is needed": not names,
        f"levels share a name: {', '.join(names)}": len(set(names)) != len(names),
        f"adapter: {no_adapter}": no_adapter is not None,
        f"adapter.start {no_start}": adapter.start is not None and no_start is not None,
        f"aggregation.rule is {rule.value!r}; allowed for an adapter of kind {adapter.kind!r}: auto, "
        + ", ".join(rule.value for rule in rules): rule not in rules,
        f"no level has the adapter's own rank, {adapter.rank}: set no rank in one": (
            bool(names) and all(0 < level.rank < adapter.rank for level in config.levels)
        ),
        f"model.labels are needed, two or more, for {task.value}": (
            task.classifies and len(config.model.labels) < 2  # noqa: PLR2004 - a choice needs two
        ),
        "model.labels are for a classification": not task.classifies and bool(config.model.labels),
        **config.rounds.complaints(),
        "training.warmup_steps is more than training.steps": config.training.warmup_steps > config.training.steps,
        "participant.tls is missing; broker.url is mqtts://, and every device has a certificate of its own": (
            config.participant is not None and config.participant.tls is None and config.broker.url.startswith("mqtts:")
        ),
        **policy_complaints(config.policy, names),
        "policy.tune needs an [evaluation] table with a path: what a round was worth is told by the held-out loss": (
            config.policy.tune is not None and config.evaluation is None
        ),
        "policy.tune compares rounds, and here a result may count in another than its own: leave out rounds.late and "
        "rounds.mode, or policy.tune": config.policy.tune is not None and config.rounds.discounts,
        **_aggregation_complaints(config.aggregation),
        **_estimator_complaints(config),
        **_late_complaints(config),
        **(config.rollout.complaints(names, config.rounds.quorum) if config.rollout else {}),
        **(privacy_complaints.central_complaints(config, config.central_privacy) if config.central_privacy else {}),
        **privacy_complaints.device_complaints(config),
        **(secure_complaints(config, config.secure) if config.secure else {}),
        f"training.delta_codec is {codec.value!r}; aggregation.rule {rule.value!r} keeps no residuals; allowed: "
        f"{', '.join(c.value for c in DeltaCodec if c not in NEEDS_RESIDUAL)}": (
            codec in NEEDS_RESIDUAL and not rule.keeps_coordinates
        ),
    }
    for level in config.levels:
        allowed = ", ".join(map(str, BITS))
        complaints[f"levels.{level.name}.bits is {level.bits}; allowed: {allowed}"] = level.bits not in BITS
        trained_too_many = 0 < level.layers < level.train_last
        complaints[f"levels.{level.name} trains more layers than it keeps"] = trained_too_many
        lacks_public = level.needs_public and config.public is None
        complaints[f"levels.{level.name} needs a [public] table with a path"] = lacks_public
        complaints |= _rank_complaints(level, config)
    return complaints


def _rank_complaints(level: LevelConfig, config: Config) -> dict[str, bool]:
    rank, highest = level.rank, config.adapter.rank
    narrows = config.aggregation.rule is Rule.LORA_SVD
    return {
        f"levels.{level.name}.rank is {rank}, more than adapter.rank, {highest}": rank > highest,
        f"levels.{level.name}.rank is {rank}; only aggregation.rule = 'lora-svd' brings an adapter to a lower rank": (
            0 < rank < highest and not narrows
        ),
    }


def _aggregation_complaints(aggregation: AggregationConfig) -> dict[str, bool]:
    optimizer, default = aggregation.optimizer, AggregationConfig()
    averages, adapts = optimizer is ServerOptimizer.FEDAVG, optimizer is ServerOptimizer.FEDADAM
    return {
        f"aggregation.optimizer is {optimizer.value!r}, which keeps moments of each number from round to round; "
        "lora-svd makes new factors each round: set aggregation.rule = 'freeze-a'": (
            not averages and aggregation.rule is Rule.LORA_SVD
        ),
        "aggregation.learning_rate is missing; fedadam needs one, about how far a number may go in a round": (
            adapts and aggregation.learning_rate is None
        ),
        "aggregation.beta1 is for fedavgm and fedadam": averages and aggregation.beta1 != default.beta1,
        "aggregation.beta2 is for fedadam": not adapts and aggregation.beta2 != default.beta2,
        "aggregation.tau is for fedadam": not adapts and aggregation.tau != default.tau,
    }


def _estimator_complaints(config: Config) -> dict[str, bool]:
    aggregation, quorum = config.aggregation, config.rounds.quorum
    estimator, liars = aggregation.estimator, aggregation.byzantine
    robust, name, least = estimator is not Estimator.MEAN, estimator.value, estimator.least(liars)
    return {
        "aggregation.byzantine is for the estimators median, trimmed-mean and multi-krum": liars > 0 and not robust,
        f"aggregation.byzantine is missing: how many deltas of a round {name} has to withstand": (
            robust and liars == 0
        ),
        f"rounds.quorum is {quorum}; {name} withstands {liars} deltas that lie among {least} or more: "
        f"set rounds.quorum to {least} at least, or byzantine lower": robust and quorum < least,
        f"aggregation.estimator is {name!r}, which is taken number by number; the numbers of LoRA's factors mean "
        "nothing apart where both train: set aggregation.rule = 'freeze-a', or estimator = 'multi-krum'": (
            estimator.by_number and aggregation.rule is Rule.LORA_SVD
        ),
        f"aggregation.estimator is {name!r}; most numbers of a delta in top-k are zero, and so is the middle of them: "
        "choose another training.delta_codec": (
            estimator.by_number and config.training.delta_codec is DeltaCodec.TOP_K
        ),
        "aggregation.estimator is 'multi-krum', which needs deltas of the same tensors; levels keep or train different "
        "layers: choose median or trimmed-mean, or make the levels alike": (
            estimator is Estimator.MULTI_KRUM
            and len({(level.layers, level.train_last, level.drop) for level in config.levels}) > 1
        ),
    }


def _late_complaints(config: Config) -> dict[str, bool]:
    """Where a result may count in another round than its own, or who is in one depends on who is fast."""
    rounds, estimator = config.rounds, config.aggregation.estimator
    setting = "mode = 'buffered'" if rounds.mode is Mode.BUFFERED else "late = 'discount'"
    return {
        f"rounds.{setting} discounts deltas by how late they are; a {estimator.value} knows no weights: leave out "
        "aggregation.estimator": rounds.discounts and estimator is not Estimator.MEAN,
        f"rounds.{setting} puts deltas of several rounds into one, which [privacy] cannot account: leave one out": (
            rounds.discounts and config.central_privacy is not None
        ),
        "rounds.extra takes the fastest of those that were drawn, so that one's data decides who else counts, which "
        "[privacy] cannot account: leave one out": rounds.extra > 0 and config.central_privacy is not None,
    }
