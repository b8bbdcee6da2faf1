"""From a budget to a walk that is ready to train within it, in this process as it is.

What a process holds when everything is loaded differs from board to board, and between a worker and a program that uses
the library. So the plan that the manifest promises is loaded, what is resident then is measured, and the plan is chosen
again with that in the place of what the exporter measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.plan import FAST_STORAGE, Declined, Plan, Storage, choose_plan, with_process
from edge_sdk.engine.probe import ready
from edge_sdk.engine.walk import Walk
from edge_sdk.errors import OverBudget
from edge_sdk.wire.manifest import Manifest


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a step has to fit: rows and tokens of a step, the budget in bytes, threads, and what the device has learnt.

    `correction` is the ratio of measured to predicted peaks so far, `storage` where the weights are read from.
    """

    batch: int
    tokens: int
    budget_bytes: int
    threads: int
    correction: float = 1.0
    storage: Storage = FAST_STORAGE


def settle(artifact: Artifact, limits: Limits, watch: Callable[[], None]) -> Walk:
    """A walk, loaded, with the fastest plan that fits. `watch` is asked from the first moment.

    Raises OverBudget with what the leanest plan needs, ArtifactError, and what `watch` raises.
    """
    walk, rest_bytes = ready(artifact, limits.threads, planned(artifact.manifest, limits), watch)
    walk.follow(planned(with_process(artifact.manifest, rest_bytes), limits))
    return walk


def planned(manifest: Manifest, limits: Limits) -> Plan:
    """The fastest plan within the limits. Raises OverBudget with what the leanest needs."""
    step = (limits.batch, limits.tokens, limits.budget_bytes)
    plan = choose_plan(manifest, *step, limits.correction, limits.storage)
    if isinstance(plan, Declined):
        raise OverBudget(plan.needed_bytes, limits.budget_bytes, "needed by the leanest plan")
    return plan
