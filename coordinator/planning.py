"""A run's plan, from its configuration, its artifact and its ledger."""

from __future__ import annotations

import dataclasses

from coordinator.builder import Artifact, BuiltLevel
from coordinator.config import Config
from coordinator.ledger import Ledger
from coordinator.plan import Plan
from coordinator.policy.types import Level
from coordinator.secure.opening import terms_of
from coordinator.task_book import TaskMaker


def plan_of(config: Config, artifact: Artifact, ledger: Ledger) -> Plan:
    """What `rounds` follows: rows as long as the model takes them, levels with what they cost."""
    tokens = artifact.full.manifest.model.row_tokens(config.training.tokens)
    training = dataclasses.replace(config.training, tokens=tokens)
    return Plan(
        rounds=config.rounds,
        tasks=TaskMaker(
            ledger.run,
            training,
            config.aggregation.rule,
            terms_of(config),
            config.example_noise,
            config.transfer.sources,
        ),
        levels=tuple(_level(config, built) for built in artifact.levels.values()),
        artifacts={name: built.blob for name, built in artifact.levels.items()},
        needed=frozenset({config.participant.device} if config.participant else ()),
        checks=config.checks,
        lots=ledger.secret if config.central_privacy else "",
        transfer=config.transfer,
        rollout=config.rollout,
    )


def _level(config: Config, built: BuiltLevel) -> Level:
    """As policies see it."""
    name = built.manifest.level.name
    quality = next(level.quality for level in config.levels if level.name == name)
    tokens = built.manifest.model.row_tokens(config.training.tokens)
    return built.level(config.training.batch, tokens, quality)
