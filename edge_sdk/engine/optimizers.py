"""Optimizers as pure functions over explicit state, schedules, clipping.

`init(parameters) -> state`; `update(parameters, gradients, state, learning_rate) -> state`, which changes parameters
and state in place: on a small board a second copy of either is what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_sdk.wire.messages import OptimizerKind, Schedule
from edge_sdk.wire.tensors import Array

Arrays = Mapping[str, Array]


@dataclass(slots=True)
class State:
    """Steps made, and moments by tensor name (empty for those an optimizer does not keep)."""

    step: int
    first: dict[str, Array]
    second: dict[str, Array]


class Optimizer(Protocol):
    """Turns gradients into a change of parameters."""

    def init(self, parameters: Arrays) -> State:
        """The state before the first step."""

    def update(self, parameters: Arrays, gradients: Arrays, state: State, learning_rate: float) -> None:
        """One step, in place."""


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay: Loshchilov & Hutter, https://arxiv.org/abs/1711.05101, algorithm 2."""

    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def init(self, parameters: Arrays) -> State:
        """Zero moments, float32, 8 bytes a parameter."""
        return State(0, _zeros(parameters), _zeros(parameters))

    def update(self, parameters: Arrays, gradients: Arrays, state: State, learning_rate: float) -> None:
        """One step, in place."""
        state.step += 1
        size = learning_rate / (1 - self.beta1**state.step)
        correction = math.sqrt(1 - self.beta2**state.step)
        for name, gradient in gradients.items():
            parameter, first, second = parameters[name], state.first[name], state.second[name]
            parameter *= np.float32(1 - learning_rate * self.weight_decay)
            first += (1 - self.beta1) * (gradient - first)
            second += (1 - self.beta2) * (np.square(gradient) - second)
            parameter -= size * first / (np.sqrt(second) / correction + self.epsilon)


@dataclass(frozen=True, slots=True)
class Sgd:
    """Stochastic gradient descent with momentum, as torch defines it (no dampening), and decoupled weight decay."""

    weight_decay: float = 0.0
    momentum: float = 0.9

    def init(self, parameters: Arrays) -> State:
        """Zero velocity, float32, 4 bytes a parameter."""
        return State(0, _zeros(parameters), {})

    def update(self, parameters: Arrays, gradients: Arrays, state: State, learning_rate: float) -> None:
        """One step, in place."""
        state.step += 1
        for name, gradient in gradients.items():
            parameter, velocity = parameters[name], state.first[name]
            parameter *= np.float32(1 - learning_rate * self.weight_decay)
            velocity *= np.float32(self.momentum)
            velocity += gradient
            parameter -= np.float32(learning_rate) * velocity


def optimizer_of(kind: OptimizerKind, weight_decay: float) -> Optimizer:
    """The optimizer that a task asks for."""
    return AdamW(weight_decay) if kind is OptimizerKind.ADAMW else Sgd(weight_decay)


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
    norm = math.sqrt(sum(float(np.sum(np.square(array, dtype=np.float64))) for array in gradients.values()))
    if 0 < clip_norm < norm and math.isfinite(norm):
        for array in gradients.values():
            np.multiply(array, np.float32(clip_norm / norm), out=array)
    return norm


def _zeros(parameters: Arrays) -> dict[str, Array]:
    return {name: np.zeros_like(array) for name, array in parameters.items()}
