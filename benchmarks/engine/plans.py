"""Which plans stand against the peers: chosen by prediction, by name. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from edge_sdk.engine.plan import Declined, Plan, choose_plan, frontier, leanest, plans
from edge_sdk.wire.manifest import Manifest

LEANEST = "leanest"
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
    return {tuple(name for name in found if found[name] == plan): plan for plan in found.values()}


def whole_frontier(manifest: Manifest, batch: int, tokens: int) -> list[Plan]:
    """The plans that are faster than all leaner ones, of those for any budget, the leanest first."""
    bounded = frontier(plans(manifest, batch, tokens))
    least, most = bounded[0].peak_bytes, bounded[-1].peak_bytes
    budgets = [least * (most / least) ** (k / BUDGETS) for k in range(BUDGETS + 1)]
    return frontier(plan for budget in budgets for plan in plans(manifest, batch, tokens, budget))
