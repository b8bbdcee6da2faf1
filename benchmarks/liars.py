"""Devices that lie, in a fleet of one process: what they send in place of what they learned.

An attack is a function of the honest delta, and of what colluding liars know of honest ones; `Besieged` is an engine
that sends what it gives for the liars among its devices. All else of a liar is honest: names, shapes, examples, the
receipt that it waits for.
"""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from benchmarks.fleet import Engine
from edge_sdk.engine.train import StepReport
from edge_sdk.order import WorkerOrder
from edge_sdk.wire.delta import Delta, decode_delta, encode_delta, pack_array
from edge_sdk.wire.messages import Report

BOOST: Final = 10.0  # times as long as honest
SHADOWS: Final = 3  # runs on their own data by which colluding liars guess what honest devices send


class Attack(enum.Enum):
    """What liars do."""

    NONE = "none"
    NAN = "nan"
    SIGN_FLIP = "sign-flip"
    NOISE = "noise"
    LABEL_FLIP = "label-flip"
    LITTLE = "a-little-is-enough"


def lie(attack: Attack, honest: Delta, random: np.random.Generator) -> Delta:
    """What one liar sends in place of `honest`: what it learned, `BOOST` times as long, backwards or in any direction.

    A flipped label is a lie of the data, which is learned honestly.
    """
    if attack is Attack.NAN:
        return Delta({name: np.full_like(array, np.nan) for name, array in honest.tensors.items()})
    if attack is Attack.SIGN_FLIP:
        return -BOOST * honest
    if attack is Attack.NOISE:
        size = BOOST * honest.size()
        shapes = ((name, array.shape) for name, array in honest.tensors.items())
        return Delta({name: np.asarray(random.normal(0, size, shape), np.float32) for name, shape in shapes})
    return honest


def a_little(shadows: Sequence[Delta], devices: int, liars: int) -> Delta:
    """What all colluding liars send: the mean of what honest devices might, less z standard deviations of each number.

    M. Baruch et al., A Little Is Enough: Circumventing Defenses for Distributed Learning, NeurIPS 2019, algorithm 3:
    z is the largest with which a majority of the honest devices is expected to be further out.
    """
    supporters = devices // 2 + 1 - liars
    z = statistics.NormalDist().inv_cdf((devices - liars - supporters) / (devices - liars))
    found = {}
    for name in shadows[0].tensors:
        stack = np.stack([shadow.tensors[name] for shadow in shadows])
        found[name] = (stack.mean(axis=0) - z * stack.std(axis=0)).astype(np.float32)
    return Delta(found)


class Besieged(Engine):
    """An engine for a fleet of which `liars` lie; see `Engine`."""

    def __init__(self, folder: pathlib.Path, attack: Attack, liars: frozenset[str], devices: int) -> None:
        """`devices` take part in a round, the liars among them."""
        super().__init__(folder)
        self._attack, self._liars, self._devices = attack, liars, devices
        self._agreed: dict[int, Delta] = {}  # by round
        self._agreeing = threading.Lock()

    def train(self, order: WorkerOrder, progress: Callable[[StepReport], None]) -> Report:
        """See Engine; a liar's delta is another one when this returns."""
        report = super().train(order, progress)
        if order.device in self._liars:
            path = pathlib.Path(order.delta)
            file, honest = decode_delta(path.read_bytes(), path.stat().st_size)
            sent = self._sent(order, honest)
            tensors = {name: pack_array(array) for name, array in sent.tensors.items()}
            path.write_bytes(encode_delta(dataclasses.replace(file, tensors=tensors)))
        return report

    def _sent(self, order: WorkerOrder, honest: Delta) -> Delta:
        if self._attack is not Attack.LITTLE:
            return lie(self._attack, honest, np.random.default_rng(order.task.seed))
        with self._agreeing:  # whoever is first finds what all of them send
            if order.task.round not in self._agreed:
                shadows = [honest, *(self._shadow(order, k) for k in range(1, SHADOWS))]
                self._agreed[order.task.round] = a_little(shadows, self._devices, len(self._liars))
            return self._agreed[order.task.round]

    def _shadow(self, order: WorkerOrder, k: int) -> Delta:
        """What an honest device might send: learned from the liar's data in another order."""
        path = pathlib.Path(f"{order.delta}.shadow")
        task = dataclasses.replace(order.task, seed=order.task.seed + k)
        super().train(dataclasses.replace(order, task=task, delta=str(path)), lambda _step: None)
        delta = decode_delta(path.read_bytes(), path.stat().st_size)[1]
        path.unlink()
        return delta
