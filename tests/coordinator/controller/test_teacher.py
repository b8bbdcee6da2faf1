"""The teacher asks whoever answers."""

from __future__ import annotations

import dataclasses

from coordinator.controller.teacher import Careful
from coordinator.policy.kkt import Kkt
from coordinator.policy.types import Decision, DeviceView, Level, Observation, Terms
from edge_sdk.wire.messages import DeltaCodec

LEVEL = Level("int8", 100, 1000, upload_bytes={DeltaCodec.FP32: 10}, files={"int8": 1000}, step_s=1.0)
TERMS = Terms(steps=10, deadline_s=400.0, bandwidth_bytes_s=1e6)
QUICK = DeviceView("quick", 200, rate_bytes_s=1e6, slowness=1.0, examples=10, asked=1, answered=1, beside_s=1.0)
SLOW = dataclasses.replace(QUICK, name="slow", slowness=3.0)


def asked(policy: Kkt | Careful, *devices: DeviceView) -> set[str]:
    """Who takes part."""
    decision: Decision
    decision, _ = policy.decide(Observation(devices, (LEVEL,), (), devices, TERMS), policy.initial())
    return set(decision.choices)


def test_who_never_answers_is_not_asked_for_ever() -> None:
    """Both ask the quicker of two; once that one has lost task after task the teacher asks the other."""
    analytic = Kkt(people_power=0.0)
    careful = Careful(analytic)
    assert asked(analytic, QUICK, SLOW) == asked(careful, QUICK, SLOW) == {"quick"}
    silent = dataclasses.replace(QUICK, asked=4, answered=0)
    assert asked(analytic, silent, SLOW) == {"quick"}
    assert asked(careful, silent, SLOW) == {"slow"}


def test_one_loss_among_many_answers_is_forgiven() -> None:
    """What is seldom lost costs little in the mean."""
    assert asked(Careful(Kkt(people_power=0.0)), dataclasses.replace(QUICK, asked=30, answered=29), SLOW) == {"quick"}
