"""What a configuration cannot have beside `[secure]`, in a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.guards import Estimator
from coordinator.secure.config import SecureConfig, too_heavy
from coordinator.secure.steps import LEAST
from edge_sdk.wire.messages import DeltaCodec

if TYPE_CHECKING:  # it asks us
    from coordinator.config import Config


def secure_complaints(config: Config, secure: SecureConfig) -> dict[str, bool]:
    """What nobody can do who sees the sum alone, and what has to be alike for there to be one."""
    aggregation, rounds, training = config.aggregation, config.rounds, config.training
    most, even = rounds.seats, secure.neighbours % 2 == 0
    return {
        f"[secure] adds numbers; where both of LoRA's factors train they mean nothing in a sum: set aggregation.rule = "
        f"'freeze-a', not {aggregation.rule.value!r}": not aggregation.rule.keeps_coordinates,
        f"[secure] gives a sum, of which there is no {aggregation.estimator.value}: leave out aggregation.estimator": (
            aggregation.estimator is not Estimator.MEAN
        ),
        f"checks.norm_factor is {config.checks.norm_factor:g}; with [secure] nobody sees a delta's size: set it to 0, "
        "and aggregation.clip_norm, which devices hold themselves to": config.checks.norm_factor > 0,
        f"training.delta_codec is {training.delta_codec.value!r}; with [secure] a delta's numbers are integers of 4 "
        "bytes: leave it out": training.delta_codec is not DeltaCodec.FP32,
        "[privacy] is beside [secure]: the coordinator cannot hold a delta that it does not see to privacy.clip_norm; "
        "leave one of them out": config.central_privacy is not None,
        "[secure] adds deltas of the same tensors; levels keep or train different layers: make them alike": (
            len({(level.layers, level.train_last, level.drop) for level in config.levels}) > 1
        ),
        f"rounds.late is {rounds.late.value!r}, rounds.mode {rounds.mode.value!r}; a secure sum is of devices that are "
        "there together: leave both out": rounds.discounts,
        "rounds.participants is missing; [secure] needs to know how many devices are in a sum at most": most == 0,
        f"rounds.quorum is {rounds.quorum}; [secure] needs {LEAST} at least: of two devices, each would know the "
        "other's part": rounds.quorum < LEAST,
        f"secure.neighbours is {secure.neighbours}; it must be even, or 0": not even,
        f"rounds.participants, training.steps and training.batch multiply to {most * training.steps * training.batch}; "
        "with [secure] a sum of weights has to stay below 2^31": too_heavy(most, training.steps * training.batch),
    }
