"""Who has which rows: a data set dealt out to devices, disjoint and whole, the same way for the same seed.

Each function gives the indices of every device's rows, ascending.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.int64]]


def iid(rows: int, devices: int, seed: int) -> list[Rows]:
    """Rows dealt like cards: as many to each, or one fewer. Raises ValueError where there are fewer than devices."""
    _check(rows, devices, 1)
    return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(rows), devices)]


def by_label(labels: Sequence[int] | Rows, devices: int, alpha: float, seed: int, least: int = 10) -> list[Rows]:
    """Label skew: the rows of each class are divided by shares from Dirichlet(alpha), which are the class's own.

    The smaller alpha, the fewer devices have most of a class: M. Yurochkin et al., Bayesian Nonparametric Federated
    Learning of Neural Networks, ICML 2019. A device that is left with fewer than `least` rows gets what it lacks from
    whoever has most at that moment; FedPEFT, and others, draw everything again until nobody lacks any, which for few
    classes and many devices never ends. Raises ValueError where there are fewer rows than that takes.
    """
    labels, random = np.asarray(labels), np.random.default_rng(seed)
    _check(len(labels), devices, least)
    parts: list[list[int]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(random.dirichlet(np.full(devices, alpha)))[:-1] * len(rows)).astype(int)
        for part, dealt in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(dealt.tolist())
    for part in parts:
        while len(part) < least:
            largest = max(parts, key=len)
            part.append(largest.pop(int(random.integers(len(largest)))))
    return [np.array(sorted(part), np.int64) for part in parts]


def by_group(groups: Sequence[Hashable]) -> dict[Hashable, Rows]:
    """A device for each speaker, author or hospital: the rows of each group, in the order of their first ones."""
    found: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        found.setdefault(group, []).append(row)
    return {group: np.array(rows, np.int64) for group, rows in found.items()}


def _check(rows: int, devices: int, least: int) -> None:
    if rows < devices * least:
        msg = f"{rows} rows for {devices} devices: {devices * least} are needed, {least} for each"
        raise ValueError(msg)
