"""Which plans stand against the peers: chosen by prediction, by name. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edge_sdk.engine.plan import INTEGERS, Declined, Plan, choose_plan, frontier, leanest, plans
from edge_sdk.wire.manifest import Manifest

LEANEST = "leanest"
IN_INTEGERS = "in integers"
BUDGETS = 32  # how many are tried for a frontier: what may stay resident depends on the budget


def named_plans(
    manifest: Manifest, batch: int, tokens: int, budgets: Mapping[str, float]
) -> dict[tuple[str, ...], Plan]:
    """For each budget in bytes the fastest plan that fits it, by the budget's name, and the leanest of all.

    A plan that several names lead to stands once, under all of them; a budget that nothing fits has none.
    """
    found: dict[str, Plan] = {}
    for name, budget in budgets.items():
        chosen = choose_plan(manifest, batch, tokens, int(budget))
        if not isinstance(chosen, Declined):
            found[name] = chosen
    found[LEANEST] = leanest(plans(manifest, batch, tokens))
    return _by_plan(found)


def integer_plans(
    manifest: Manifest, batch: int, tokens: int, budgets: Mapping[str, float]
) -> dict[tuple[str, ...], Plan]:
    """The same of the plans in integers, whether or not they are faster. The level has such plans."""

    def within(budget: float) -> list[Plan]:
        found = plans(manifest, batch, tokens, budget, integers=True)
        return [plan for plan in found if plan.back_bits == INTEGERS and plan.peak_bytes <= budget]

    found = {
        f"{name} {IN_INTEGERS}": min(fitting, key=lambda plan: (plan.step_ms, plan.peak_bytes))
        for name, budget in budgets.items()
        if (fitting := within(budget))
    }
    found[f"{LEANEST} {IN_INTEGERS}"] = leanest(within(math.inf))
    return _by_plan(found)


def _by_plan(found: Mapping[str, Plan]) -> dict[tuple[str, ...], Plan]:
    return {tuple(name for name in found if found[name] == plan): plan for plan in found.values()}


def whole_frontier(manifest: Manifest, batch: int, tokens: int) -> list[Plan]:
    """The plans that are faster than all leaner ones, of those for any budget, the leanest first."""
    bounded = frontier(plans(manifest, batch, tokens))
    least, most = bounded[0].peak_bytes, bounded[-1].peak_bytes
    budgets = [least * (most / least) ** (k / BUDGETS) for k in range(BUDGETS + 1)]
    return frontier(plan for budget in budgets for plan in plans(manifest, batch, tokens, budget))
