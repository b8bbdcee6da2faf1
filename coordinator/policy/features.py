"""An observation as arrays, for a network: the same in training and in the daemon.

Everything is a share, a count or a logarithm of a ratio, so that it means the same for any ladder, fleet and number of
devices; values are within LIMIT.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.policy.arrays import Bools, Floats, Floats32
from coordinator.policy.estimates import Estimates, Fetching, Usual, known_or
from coordinator.policy.fitting import Known, fits
from coordinator.policy.types import NEVER, DeviceView, Level, Observation, Terms

LIMIT: Final = 5.0
LONG_AGO: Final = 10.0  # rounds
DEADLINE_S: Final = 600.0
MOST: Final = 1e12  # bytes, or seconds, that are believed of a task

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
OF_FLEET: Final = (
    "round",
    "left",
    "devices",
    "progress",
    "bandwidth",
    "adapter",
    "levels",
    "heard",
    "quickest",
    "people",
)


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


@np.errstate(all="ignore")  # of numbers that nothing real has, what comes out is bounded all the same
def features(observation: Observation, known: Known, fetching: Fetching, people_power: float = 0.0) -> Features:
    """See the module. There must be a device and a level. `people_power` is how much more a round of more people
    brings, as fitted to real runs, see `coordinator.controller.learning`.
    """
    devices, levels, terms = observation.devices, observation.levels, _sane(observation.terms)
    usual = Estimates.of(observation, fetching).usual
    said = _Said.of(devices)
    rates = np.where(said.rates > 0, said.rates, usual.rate_bytes_s)
    slowness = np.where(said.slowness > 0, said.slowness, usual.slowness)
    lacks = _by_holding(devices, levels, fetching)
    up_bytes = _values(level.upload_bytes.get(terms.codec, 0) for level in levels)
    wire_bytes = _within(lacks + terms.adapter_bytes + up_bytes)
    beside_s = np.where(said.beside_s > 0, said.beside_s, usual.beside_s)
    steps_s = terms.steps * _values(level.step_s for level in levels)
    compute_s = _within(steps_s * slowness[:, None] + beside_s[:, None])
    even = known_or(terms.bandwidth_bytes_s, math.inf) / len(devices)
    wire_s = wire_bytes / np.minimum(rates, even)[:, None]
    task_s = wire_s + compute_s
    may = fits(devices, levels, known)
    best_s = np.where(may, task_s, np.inf).min(axis=1, initial=np.inf)
    best_s = np.where(np.isfinite(best_s), best_s, terms.deadline_s)
    sizes = max(*(level.size_bytes for level in levels), 1)
    times = _Times(compute_s, wire_s, task_s, best_s, float(np.median(best_s)))
    return Features(
        devices=_bounded(np.stack(_of_device(said, rates, slowness, usual, times, terms), axis=-1)),
        pairs=_bounded(np.stack(_of_pair(devices, levels, said, may, lacks / sizes, times, terms), axis=-1)),
        fleet=_bounded(
            np.array([*_of_fleet(terms, said, levels, even, sizes, times.middle_s), people_power], dtype=np.float64)
        ),
        fits=may,
        wire_bytes=wire_bytes,
        compute_s=compute_s,
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """What is known of each device, (N,); 0 for what is not, and for what is no number."""

    rates: Floats
    slowness: Floats
    losses: Floats
    examples: Floats
    asked: Floats
    answered: Floats
    last_round: Floats
    budgets: Floats
    threads: Floats
    battery: Floats
    beside_s: Floats

    @staticmethod
    def of(devices: Sequence[DeviceView]) -> _Said:
        """One pass over the devices."""
        rows = np.array([_numbers(device) for device in devices], dtype=np.float64)
        return _Said(*np.where(np.isfinite(rows), rows, 0.0).T)


@dataclass(frozen=True, slots=True)
class _Times:
    """What tasks are reckoned to take, (N, L); each device's quickest, (N,), and the median of those."""

    compute_s: Floats
    wire_s: Floats
    task_s: Floats
    best_s: Floats
    middle_s: float


def _of_device(
    said: _Said, rates: Floats, slowness: Floats, usual: Usual, times: _Times, terms: Terms
) -> list[Floats | Bools]:
    """In the order of OF_DEVICE."""
    never, heard = said.last_round == NEVER, said.losses > 0
    since = np.where(never, LONG_AGO, terms.round - said.last_round)
    mean_loss = said.losses[heard].mean() if heard.any() else 1.0
    return [
        said.threads / 8,
        said.battery,
        _log(np.where(said.examples > 0, said.examples, usual.examples) / usual.examples),
        said.rates > 0,
        _log(rates / usual.rate_bytes_s),
        said.slowness > 0,
        _log(slowness / usual.slowness),
        heard,
        np.where(heard, (said.losses - mean_loss) / mean_loss, 0.0) * LIMIT,
        (said.answered + 1) / (said.asked + 1),
        np.minimum(said.asked, LONG_AGO) / LONG_AGO,
        never,
        np.minimum(since, LONG_AGO) / LONG_AGO,
        _log(times.best_s / terms.deadline_s),
        _ranks(times.best_s),
    ]


def _of_pair(
    devices: Sequence[DeviceView],
    levels: Sequence[Level],
    said: _Said,
    may: Bools,
    lacks: Floats,
    times: _Times,
    terms: Terms,
) -> list[Floats | Bools]:
    """In the order of OF_PAIR."""
    needs = _values(level.needs_bytes for level in levels)
    place = {level.name: k for k, level in enumerate(levels)}
    latest = np.array([place.get(device.last_level, -1) for device in devices])
    found = [
        may,
        _log(said.budgets[:, None] / needs),
        lacks,
        _log(times.compute_s / terms.deadline_s),
        _log(times.wire_s / terms.deadline_s),
        _log(times.task_s / terms.deadline_s),
        _log(times.task_s / times.middle_s),
        _values(level.quality for level in levels),
        np.array([[level.name in device.holds for level in levels] for device in devices]),
        latest[:, None] == np.arange(len(levels)),
        _ranks(times.task_s),
    ]
    return list(np.broadcast_arrays(*found))


def _of_fleet(
    terms: Terms, said: _Said, levels: Sequence[Level], even: float, sizes: int, middle_s: float
) -> list[float | Floats]:
    """In the order of OF_FLEET, but for its last."""
    gained = (terms.first_loss - terms.loss) / terms.first_loss if terms.loss > 0 and terms.first_loss > 0 else 0.0
    return [
        min(terms.round, 50) / 50,
        min(max(terms.rounds - terms.round, 0), 50) / 50,
        math.log(len(said.rates)) / 5,
        gained * LIMIT,
        _log(np.array(even * terms.deadline_s / sizes)) if math.isfinite(even) else LIMIT,
        terms.adapter_bytes / sizes,
        len(levels) / 10,
        float((said.losses > 0).mean()),
        _log(np.array(middle_s / terms.deadline_s)),
    ]


def _numbers(device: DeviceView) -> tuple[float, ...]:
    return (
        device.rate_bytes_s,
        device.slowness,
        device.loss,
        device.examples,
        device.asked,
        device.answered,
        device.last_round,
        device.budget_bytes,
        device.threads,
        device.battery,
        device.beside_s,
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


def _sane(terms: Terms) -> Terms:
    """What is no positive number is unknown; a deadline that is none is DEADLINE_S."""
    return dataclasses.replace(
        terms,
        round=max(terms.round, 0),
        steps=max(terms.steps, 0),
        deadline_s=known_or(terms.deadline_s, DEADLINE_S),
        bandwidth_bytes_s=known_or(terms.bandwidth_bytes_s),
        adapter_bytes=int(known_or(terms.adapter_bytes)),
        loss=known_or(terms.loss),
        first_loss=known_or(terms.first_loss),
    )


def _within(values: Floats) -> Floats:
    return np.clip(np.nan_to_num(values, nan=0.0), 0.0, MOST)


def _bounded(values: Floats) -> Floats32:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=LIMIT, neginf=-LIMIT), -LIMIT, LIMIT).astype(np.float32)
