"""An observation as arrays, for a network: the same in training and in the daemon.

Everything is a share, a count or a logarithm of a ratio, so that it means the same for any ladder, fleet and number of
devices; values are within LIMIT.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coordinator.policy.estimates import Estimates, Fetching
from coordinator.policy.fitting import Known, fitting
from coordinator.policy.types import NEVER, DeviceView, Level, Observation

Floats32: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

LIMIT: Final = 5.0
LONG_AGO: Final = 10.0  # rounds

OF_DEVICE: Final = (
    "threads",
    "battery",
    "examples",
    "rate known",
    "rate",
    "slowness known",
    "slowness",
    "loss known",
    "loss",
    "answers",
    "asked",
    "never",
    "rounds since",
    "quickest",
    "quickness rank",
)
OF_PAIR: Final = ("fits", "headroom", "lacks", "compute", "wire", "task", "behind", "quality", "held", "last", "rank")
OF_FLEET: Final = ("round", "left", "devices", "progress", "bandwidth", "adapter", "levels", "gained", "quickest")


@dataclass(frozen=True, slots=True)
class Features:
    """Of N devices and L levels: `devices` (N, OF_DEVICE), `pairs` (N, L, OF_PAIR), `fleet` (OF_FLEET,); `fits` (N, L)
    is what a device may be given. `wire_bytes` (N, L) and `compute_s` (N, L) are what a task is reckoned to take.
    """

    devices: Floats32
    pairs: Floats32
    fleet: Floats32
    fits: Bools
    wire_bytes: Floats
    compute_s: Floats


def features(observation: Observation, known: Known, fetching: Fetching) -> Features:
    """See the module. There must be a device and a level."""
    devices, levels, terms = observation.devices, observation.levels, observation.terms
    estimates = Estimates.of(observation, fetching)
    usual, count = estimates.usual, len(devices)
    rates = _values(device.rate_bytes_s for device in devices)
    slowness = _values(device.slowness for device in devices)
    losses = _values(device.loss for device in devices)
    examples = _values(device.examples for device in devices)
    asked, answered = _values(d.asked for d in devices), _values(d.answered for d in devices)
    since = _values(LONG_AGO if d.last_round == NEVER else terms.round - d.last_round for d in devices)
    never = _values(d.last_round == NEVER for d in devices)
    budgets = _values(device.budget_bytes for device in devices)

    rate, slow = np.where(rates > 0, rates, usual.rate_bytes_s), np.where(slowness > 0, slowness, usual.slowness)
    lacks = _by_holding(devices, levels, fetching)
    up_bytes = _values(estimates.up_bytes(level) for level in levels)
    wire_bytes = lacks + terms.adapter_bytes + up_bytes
    compute_s = terms.steps * _values(level.step_s for level in levels) * slow[:, None]
    even = terms.bandwidth_bytes_s / count if terms.bandwidth_bytes_s > 0 else math.inf
    wire_s = wire_bytes / np.minimum(rate, even)[:, None]
    task_s = wire_s + compute_s
    fits = _fits(devices, levels, known)
    best_s = np.where(fits, task_s, np.inf).min(axis=1, initial=np.inf)
    best_s = np.where(np.isfinite(best_s), best_s, terms.deadline_s)
    middle_s = float(np.median(best_s))
    rank = _ranks(best_s)
    mean_loss = losses[losses > 0].mean() if (losses > 0).any() else 0.0

    of_device = [
        _values(device.threads for device in devices) / 8,
        _values(device.battery for device in devices),
        _log(np.where(examples > 0, examples, usual.examples) / usual.examples),
        rates > 0,
        _log(rate / usual.rate_bytes_s),
        slowness > 0,
        _log(slow / usual.slowness),
        losses > 0,
        np.where(losses > 0, (losses - mean_loss) / (mean_loss or 1.0), 0.0) * LIMIT,
        (answered + 1) / (asked + 1),
        np.minimum(asked, LONG_AGO) / LONG_AGO,
        never,
        np.minimum(since, LONG_AGO) / LONG_AGO,
        _log(best_s / terms.deadline_s),
        rank,
    ]
    needs = _values(level.needs_bytes for level in levels)
    sizes = max(max((level.size_bytes for level in levels), default=1), 1)
    quality = np.broadcast_to(_values(level.quality for level in levels), task_s.shape)
    names = [level.name for level in levels]
    held = np.array([[name in device.holds for name in names] for device in devices])
    last = np.array([[name == device.last_level for name in names] for device in devices])
    of_pair = [
        fits,
        _log(budgets[:, None] / needs),
        lacks / sizes,
        _log(compute_s / terms.deadline_s),
        _log(wire_s / terms.deadline_s),
        _log(task_s / terms.deadline_s),
        _log(task_s / middle_s),
        quality,
        held,
        last,
        _ranks(task_s),
    ]
    gained = (terms.first_loss - terms.loss) / terms.first_loss if terms.loss > 0 and terms.first_loss > 0 else 0.0
    of_fleet = [
        min(terms.round, 50) / 50,
        min(max(terms.rounds - terms.round, 0), 50) / 50,
        math.log(count) / 5,
        gained * LIMIT,
        _log(np.array(even * terms.deadline_s / sizes)) if math.isfinite(even) else LIMIT,
        terms.adapter_bytes / sizes,
        len(levels) / 10,
        float((losses > 0).mean()),
        _log(np.array(middle_s / terms.deadline_s)),
    ]
    return Features(
        devices=_bounded(np.stack(of_device, axis=-1)),
        pairs=_bounded(np.stack(np.broadcast_arrays(*of_pair), axis=-1)),
        fleet=_bounded(np.array(of_fleet, dtype=np.float64)),
        fits=fits,
        wire_bytes=wire_bytes,
        compute_s=compute_s,
    )


def _values(values: Iterable[float]) -> Floats:
    return np.array([value if math.isfinite(value) else 0.0 for value in values], dtype=np.float64)


def _log(ratios: Floats) -> Floats:
    """Of ratios that may be 0 or infinite."""
    logs: Floats = np.log(np.clip(ratios, math.exp(-LIMIT), math.exp(LIMIT)))
    return logs


def _ranks(values: Floats) -> Floats:
    """From 0, the smallest of a column, to 1."""
    order: Floats = np.argsort(np.argsort(values, axis=0), axis=0) / max(len(values) - 1, 1)
    return order


def _by_holding(devices: Sequence[DeviceView], levels: Sequence[Level], fetching: Fetching) -> Floats:
    """What each device lacks of each level; few devices differ in what they hold."""
    rows: dict[frozenset[str], list[int]] = {}
    for device in devices:
        if device.holds not in rows:
            rows[device.holds] = [fetching.lacks_bytes(level.name, device.holds) for level in levels]
    return np.array([rows[device.holds] for device in devices], dtype=np.float64)


def _fits(devices: Sequence[DeviceView], levels: tuple[Level, ...], known: Known) -> Bools:
    place = {level.name: k for k, level in enumerate(levels)}
    fits = np.zeros((len(devices), len(levels)), dtype=np.bool_)
    for i, device in enumerate(devices):
        for level in fitting(device, levels, known):
            fits[i, place[level.name]] = True
    return fits


def _bounded(values: Floats) -> Floats32:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=LIMIT, neginf=-LIMIT), -LIMIT, LIMIT).astype(np.float32)
