"""Optimizers as pure functions over explicit state, schedules, clipping.

`init(parameters) -> state`; `update(parameters, gradients, state, learning_rate)`, which changes parameters and state
in place: on a small board a second copy of either is what does not fit. Work is done in parts of PART numbers, which
stay in a cache, so an update needs less than 0.5 MB, however large a tensor is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_sdk.engine.moments import BLOCK, Moment, moment_bytes, zero_moment
from edge_sdk.wire.messages import OptimizerKind, Schedule
from edge_sdk.wire.tensors import Array

Arrays = Mapping[str, Array]
PART = 128 * BLOCK


@dataclass(slots=True)
class State:
    """Steps made, and moments by tensor name (empty for those an optimizer does not keep)."""

    step: int
    first: dict[str, Moment]
    second: dict[str, Moment]


class Optimizer(Protocol):
    """Turns gradients into a change of parameters, which are C-contiguous float32 arrays."""

    def init(self, parameters: Arrays) -> State:
        """The state before the first step. Raises ValueError for an unsupported number of bits."""

    def update(self, parameters: Arrays, gradients: Arrays, state: State, learning_rate: float) -> None:
        """One step, in place. Raises ValueError for a parameter that is not contiguous."""


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay: Loshchilov & Hutter, https://arxiv.org/abs/1711.05101, algorithm 2."""

    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    state_bits: int = 32

    def init(self, parameters: Arrays) -> State:
        """Zero moments: 8 bytes a parameter, or 2 and a little in 8 bits."""
        first = _zeros(parameters, self.state_bits, squares=False)
        return State(0, first, _zeros(parameters, self.state_bits, squares=True))

    def update(self, parameters: Arrays, gradients: Arrays, state: State, learning_rate: float) -> None:
        """One step, in place."""
        state.step += 1
        # Both sides of m_hat / (sqrt(v_hat) + epsilon) are multiplied by the root of v's correction: one pass less.
        correction = math.sqrt(1 - self.beta2**state.step)
        size, epsilon = learning_rate * correction / (1 - self.beta1**state.step), self.epsilon * correction

        def change(parameter: Array, gradient: Array, spare: Array, first: Array, second: Array) -> None:
            parameter *= np.float32(1 - learning_rate * self.weight_decay)
            np.subtract(gradient, first, out=spare)
            spare *= np.float32(1 - self.beta1)
            first += spare
            np.square(gradient, out=spare)
            spare -= second
            spare *= np.float32(1 - self.beta2)
            second += spare
            np.sqrt(second, out=spare)
            spare += np.float32(epsilon)
            np.divide(first, spare, out=spare)
            spare *= np.float32(size)
            parameter -= spare

        _in_parts(change, parameters, gradients, state.first, state.second)


@dataclass(frozen=True, slots=True)
class Sgd:
    """Stochastic gradient descent with momentum, as torch defines it (no dampening), and decoupled weight decay."""

    weight_decay: float = 0.0
    momentum: float = 0.9
    state_bits: int = 32

    def init(self, parameters: Arrays) -> State:
        """Zero velocity: 4 bytes a parameter, or 1 and a little in 8 bits."""
        return State(0, _zeros(parameters, self.state_bits, squares=False), {})

    def update(self, parameters: Arrays, gradients: Arrays, state: State, learning_rate: float) -> None:
        """One step, in place."""
        state.step += 1

        def change(parameter: Array, gradient: Array, spare: Array, velocity: Array) -> None:
            parameter *= np.float32(1 - learning_rate * self.weight_decay)
            velocity *= np.float32(self.momentum)
            velocity += gradient
            np.multiply(velocity, np.float32(learning_rate), out=spare)
            parameter -= spare

        _in_parts(change, parameters, gradients, state.first)


def optimizer_of(kind: OptimizerKind, weight_decay: float, state_bits: int = 32) -> Optimizer:
    """The optimizer that a task asks for, its state in 32 or 8 bits."""
    if kind is OptimizerKind.ADAMW:
        return AdamW(weight_decay, state_bits=state_bits)
    return Sgd(weight_decay, state_bits=state_bits)


def state_bytes(shapes: Iterable[tuple[int, ...]], kind: OptimizerKind, state_bits: int) -> int:
    """Bytes that an optimizer keeps for parameters of these shapes. Raises ValueError for bits other than 8 and 32."""
    moments = 2 if kind is OptimizerKind.ADAMW else 1
    return moments * sum(moment_bytes(math.prod(shape), state_bits) for shape in shapes)


def learning_rate_at(step: int, steps: int, peak: float, schedule: Schedule, warmup_steps: int) -> float:
    """The rate of step 0 .. steps - 1: a linear warm-up that reaches `peak` at step `warmup_steps`, then the schedule.

    Linear and cosine would reach zero at step `steps`, one after the last.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    match schedule:
        case Schedule.CONSTANT:
            return peak
        case Schedule.LINEAR:
            return peak * (1 - done)
        case Schedule.COSINE:
            return peak * 0.5 * (1 + math.cos(math.pi * done))


def clip(gradients: Arrays, clip_norm: float) -> float:
    """Scale all gradients, in place, so that their global norm is at most `clip_norm` (0: no bound).

    Returns the norm before, accumulated in float64; it is not finite where a gradient is not.
    """
    norm = math.sqrt(sum(_square_sum(array) for array in gradients.values()))
    if 0 < clip_norm < norm and math.isfinite(norm):
        for array in gradients.values():
            np.multiply(array, np.float32(clip_norm / norm), out=array)
    return norm


def _square_sum(array: Array) -> float:
    flat, wide, total = array.reshape(-1), np.empty(PART), 0.0
    for part in _slices(flat.size):
        squares = np.square(flat[part], dtype=np.float64, out=wide[: part.stop - part.start])
        total += float(squares.sum())
    return total


def _in_parts(
    change: Callable[..., None], parameters: Arrays, gradients: Arrays, *moments: Mapping[str, Moment]
) -> None:
    """Change all that has a gradient, PART numbers at a time.

    `change` gets a part of a parameter, of its gradient, spare room, and the parts of its moments, all flat and
    float32; what it writes to parameter and moments is kept.
    """
    spare, *rooms = np.empty((1 + len(moments), PART), np.float32)
    for name, gradient in gradients.items():
        parameter, slope = _flat(name, parameters[name]), gradient.reshape(-1)
        kept = [(moment[name], room) for moment, room in zip(moments, rooms, strict=True)]
        for part in _slices(parameter.size):
            loaded = [moment.load(part, room, spare) for moment, room in kept]
            change(parameter[part], slope[part], spare[: part.stop - part.start], *loaded)
            for moment, room in kept:
                moment.store(part, room, spare)


def _slices(size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + PART, size)) for begin in range(0, size, PART))


def _flat(name: str, array: Array) -> Array:
    """A view: of what is not contiguous it would be a copy, and the update would be lost."""
    if not array.flags.c_contiguous:
        msg = f"parameter {name} is not contiguous"
        raise ValueError(msg)
    return array.reshape(-1)


def _zeros(parameters: Arrays, bits: int, *, squares: bool) -> dict[str, Moment]:
    return {name: zero_moment(array.size, bits, squares=squares) for name, array in parameters.items()}
