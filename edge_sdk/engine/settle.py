"""From a budget to a walk that is ready to train within it, in this process as it is.

What a process holds when everything is loaded differs from board to board, and between a worker and a program that uses
the library. So the plan that the manifest promises is loaded, what is resident then is measured, and the plan is chosen
again with that in the place of what the exporter measured, among those that need no larger arena than the first, for
that is reserved then. Products in integers are tried out before they are chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.costs import Costs
from edge_sdk.engine.integers import gains
from edge_sdk.engine.plan import EXACT, Limits, Plan, planned, with_process
from edge_sdk.engine.probe import ready
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.manifest import Manifest


def settle(artifact: Artifact, limits: Limits, watch: Callable[[], None]) -> Walk:
    """A walk, loaded, with the fastest plan that fits. `watch` is asked from the first moment.

    Raises OverBudget with what the leanest plan needs, ArtifactError, and what `watch` raises.
    """
    first = planned(artifact.manifest, limits)
    walk, rest_bytes = ready(artifact, limits.threads, _within(limits.budget_bytes, first, artifact.manifest), watch)
    manifest = with_process(artifact.manifest, rest_bytes)
    limits = dataclasses.replace(limits, arena_bytes=first.arena_bytes)
    walk.follow(planned(manifest, limits))
    if walk.plan.back_bits != EXACT and not gains(walk, limits.tokens):
        walk.follow(planned(manifest, dataclasses.replace(limits, integers=False)))
    return walk


def _within(budget_bytes: int, plan: Plan, manifest: Manifest) -> Plan:
    """`plan` with nothing reserved for the arena where the budget has no room for it: such a plan is wrong, and what it
    wants is to be refused before it is touched.
    """
    room_bytes = budget_bytes - Costs(manifest.costs).process_bytes
    return plan if plan.arena_bytes <= room_bytes else dataclasses.replace(plan, arena_bytes=0)
