"""From a budget to a walk that is ready to train within it, in this process as it is.

What a process holds when everything is loaded differs from board to board, and between a worker and a program that uses
the library. So the plan that the manifest promises is loaded, what is resident then is measured, and the plan is chosen
again with that in the place of what the exporter measured, among those that need no larger arena than the first, for
that is reserved then. Products in integers are tried out before they are chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.integers import gains
from edge_sdk.engine.plan import EXACT, FAST_STORAGE, Declined, Plan, Storage, choose_plan, with_process
from edge_sdk.engine.probe import ready
from edge_sdk.engine.walk import Walk
from edge_sdk.errors import OverBudget
from edge_sdk.wire.manifest import Manifest


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a step has to fit: rows and tokens of a step, the budget in bytes, threads, and what the device has learnt.

    `correction` is the ratio of measured to predicted peaks so far, `storage` where the weights are read from.
    Gradients are exact unless `integers` may be used. The runtime's arena has `arena_bytes` at most.
    """

    batch: int
    tokens: int
    budget_bytes: int
    threads: int
    correction: float = 1.0
    storage: Storage = FAST_STORAGE
    integers: bool = False
    arena_bytes: float = math.inf


def settle(artifact: Artifact, limits: Limits, watch: Callable[[], None]) -> Walk:
    """A walk, loaded, with the fastest plan that fits. `watch` is asked from the first moment.

    Raises OverBudget with what the leanest plan needs, ArtifactError, and what `watch` raises.
    """
    first = planned(artifact.manifest, limits)
    walk, rest_bytes = ready(artifact, limits.threads, first, watch)
    manifest = with_process(artifact.manifest, rest_bytes)
    limits = dataclasses.replace(limits, arena_bytes=first.arena_bytes)
    walk.follow(planned(manifest, limits))
    if walk.plan.back_bits != EXACT and not gains(walk, limits.tokens):
        walk.follow(planned(manifest, dataclasses.replace(limits, integers=False)))
    return walk


def planned(manifest: Manifest, limits: Limits) -> Plan:
    """The fastest plan within the limits. Raises OverBudget with what the leanest needs."""
    step = (limits.batch, limits.tokens, limits.budget_bytes)
    plan = choose_plan(
        manifest,
        *step,
        limits.correction,
        limits.storage,
        integers=limits.integers,
        arena_bytes=limits.arena_bytes,
    )
    if isinstance(plan, Declined):
        raise OverBudget(plan.needed_bytes, limits.budget_bytes, "needed by the leanest plan")
    return plan
