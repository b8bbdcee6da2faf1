"""Whether this device gains from products in integers: tried out here, for the exporter's processor may be another.

Some have dot products of bytes; others are no faster with integers, and where x86 has none, it adds pairs of products
in 16 bits, which saturate: sums come out wrong without a word. docs/adr/0009-precision.md has the numbers.
"""

from __future__ import annotations

import dataclasses
import pathlib
import platform
import time

import numpy as np

from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import EXACT, WORTH, Plan
from edge_sdk.engine.walk import Walk

TURNS, RUNS, TURN_S = 5, 2, 0.02  # a small model's block runs many times in a turn
DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni"})  # as Linux calls them; either adds in 32 bits
CPUINFO = pathlib.Path("/proc/cpuinfo")


def gains(walk: Walk, tokens: int) -> bool:
    """Whether the plan in integers that `walk` follows is worth it on this device; it follows that plan afterwards.

    `tokens` are the longest row's: one row of them is walked back through one block, both ways.
    """
    if saturates(platform.machine(), CPUINFO.read_text(encoding="utf-8")):
        return False
    exact_ms, integers_ms = back_ms(walk, tokens)
    return integers_ms <= WORTH * exact_ms


def saturates(machine: str, cpuinfo: str) -> bool:
    """Whether a processor adds products of bytes in 16 bits; `machine` and `cpuinfo` are what Linux says of it."""
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return machine == "x86_64" and DOT_PRODUCTS.isdisjoint(flags)


def back_ms(walk: Walk, tokens: int) -> tuple[float, float]:
    """The shortest time of one block's way back, exact and in integers, ms."""
    integers, manifest = walk.plan, walk.artifact.manifest
    block = next(s for s in reversed(manifest.walked_back()) if manifest.structures[s.structure].backward_integers)
    ids = np.zeros((1, tokens), np.int64)
    context, adapter = walk.context(Batch(ids, np.ones_like(ids), ids[:, 0])), walk.artifact.initial_adapter()
    hidden = np.random.default_rng(0).normal(size=(1, tokens, manifest.model.width)).astype(np.float32)
    found = walk.there(block, {"x": hidden}, context, adapter)
    kept = {"x": hidden, **{name: array for name, array in found.items() if name != "y"}}

    def shortest_ms(plan: Plan) -> float:
        walk.follow(plan)
        times_s: list[float] = []
        while len(times_s) < RUNS or sum(times_s) < TURN_S:
            begin = time.perf_counter()
            walk.back(block, kept, hidden, context, adapter)
            times_s.append(time.perf_counter() - begin)
        return min(times_s) * 1e3

    plans = (dataclasses.replace(integers, back_bits=EXACT), integers)
    turns = [[shortest_ms(plan) for plan in plans] for _ in range(TURNS)]  # what else the machine does comes and goes
    exact_ms, integers_ms = (min(times) for times in zip(*turns, strict=True))
    return exact_ms, integers_ms
