"""From a budget to a walk that is ready to train within it, in this process as it is.

What a process holds when everything is loaded differs from board to board, and between a worker and a program that uses
the library; and what a graph needs at the task's shape, only running it at that shape tells. So the plan that the
manifest promises is loaded and rehearsed, and the plan is chosen again with what was measured in the place of what was
expected, until one is chosen that was rehearsed. Products in integers are tried out before they are chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.integers import gains
from edge_sdk.engine.plan import EXACT, REGION, Limits, Plan, planned, way_of, with_process
from edge_sdk.engine.probe import ready
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.costs import Costs
from edge_sdk.wire.manifest import Manifest


def settle(artifact: Artifact, limits: Limits, watch: Callable[[], None]) -> Walk:
    """A walk, loaded, with the fastest plan that fits. `watch` is asked from the first moment.

    Raises OverBudget with what the leanest plan needs, ArtifactError, MemoryError, and what `watch` raises.
    """
    first = _within(limits.budget_bytes, planned(artifact.manifest, limits), artifact.manifest)
    walk, rest = ready(artifact, limits.threads, first, limits.tokens, watch)
    manifest, taken_bytes = with_process(artifact.manifest, rest.bytes), rest.arena_bytes
    arenas = {way_of(manifest, first): taken_bytes}
    while True:
        limits = dataclasses.replace(limits, arenas=arenas)
        walk.follow(planned(manifest, limits))
        if walk.plan.back_bits != EXACT and not gains(walk, limits.tokens):
            limits = dataclasses.replace(limits, integers=False)
        elif (way := way_of(manifest, walk.plan)) in arenas:
            return walk
        else:
            taken_bytes += walk.rehearse(limits.tokens)
            arenas = {**arenas, way: taken_bytes}


def _within(budget_bytes: int, plan: Plan, manifest: Manifest) -> Plan:
    """`plan` with a region for the arena that the budget has room for, beside what else will be asked for.

    None where not even what is expected to lie in it has room: such a plan is wrong, and what it wants is to be refused
    before it is touched.
    """
    room_bytes = max(budget_bytes - Costs(manifest.costs).process_bytes, 0) * 3 // 4
    region_bytes = min(plan.arena_bytes, room_bytes) if plan.arena_bytes <= REGION * room_bytes else 0
    return dataclasses.replace(plan, arena_bytes=region_bytes)
