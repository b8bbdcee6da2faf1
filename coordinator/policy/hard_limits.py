"""What no policy can break: a policy within hard limits is a policy again.

Rules:

- only devices that a decision is wanted for get anything, and only levels that there are;
- a level fits the device, see `fitting`; where none does, a smallest one may be tried that was not tried yet;
- the delta's codec is one of the terms';
- the share is a number from MIN_SHARE to MAX_SHARE; the power is one that a task can have;
- a policy that fails decides nothing: largest-that-fits does, for this once, and the policy sees the answers next time.

A choice that breaks a rule is dropped, and its device sits out. Where fewer take part than the terms' `least`, those
that would be done first at their fastest level join them. The decision's notes say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from coordinator.policy.estimates import Estimates
from coordinator.policy.fastest_that_fits import FastestThatFits
from coordinator.policy.fitting import Known, fitting, last_resort
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Answer, Choice, Decision, DeviceView, Level, Observation, Policy
from edge_sdk.wire.messages import MIN_POWER

S = TypeVar("S")

MIN_SHARE, MAX_SHARE = 1e-15, 1e6  # of less there might come a rate of 0, which is none
LENGTH: Final = 200  # characters of a note: a policy's words must not fill a log


@dataclass(frozen=True, slots=True)
class Guarded(Generic[S]):
    """The policy's own `state`; what is `known` of how levels fit; answers that the policy `missed`, for it failed."""

    state: S
    known: Known = field(default_factory=Known)
    missed: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class HardLimits(Generic[S]):
    """`policy`, within the limits of this module."""

    policy: Policy[S]

    def initial(self) -> Guarded[S]:
        """The state of a policy that has seen nothing."""
        return Guarded(self.policy.initial())

    def decide(self, observation: Observation, state: Guarded[S]) -> tuple[Decision, Guarded[S]]:
        """What the policy decides, less what it may not. Never raises, whatever the policy does."""
        known = state.known.after(observation.answers)
        answers = (*state.missed, *observation.answers)
        try:
            decision, inner = self.policy.decide(replace(observation, answers=answers), state.state)
            return limited(decision, observation, known), Guarded(inner, known)
        except Exception as error:  # noqa: BLE001 - a policy is data from elsewhere: whatever it does, the round goes on
            why = f"{type(self.policy).__name__} failed, largest-that-fits decides: {type(error).__name__}: {error}"
            fallback, _ = LargestThatFits().decide(observation, known)
            return replace(fallback, notes=(why[:LENGTH],)), Guarded(state.state, known, answers)


def limited(decision: object, observation: Observation, known: Known) -> Decision:
    """The decision without what breaks a limit. Raises TypeError where it is no decision at all."""
    if not isinstance(decision, Decision) or not isinstance(decision.choices, Mapping):
        msg = f"a {type(decision).__name__} is no decision"
        raise TypeError(msg)
    devices = {device.name: device for device in observation.devices}
    kept: dict[str, Choice] = {}
    notes = [str(note)[:LENGTH] for note in decision.notes]
    for name, choice in decision.choices.items():
        device = devices.get(name) if isinstance(name, str) else None
        wrong = next(_wrong(device, choice, observation, known), None)
        if wrong is None:
            kept[name] = replace(choice, share=float(choice.share), power=float(choice.power))
        else:
            notes.append(f"{name!s}: its choice is dropped, {wrong}"[:LENGTH])
    joining = _joining(kept, observation, known)
    if joining:
        notes.append(f"{', '.join(joining)} join: a round needs {observation.terms.least} devices"[:LENGTH])
    return Decision({**kept, **joining}, tuple(notes))


def _joining(kept: Mapping[str, Choice], observation: Observation, known: Known) -> dict[str, Choice]:
    """Who joins those that a policy chose, where they are too few. Who tries a last resort will hardly deliver, and
    those that nothing fits are no help.
    """
    if observation.terms.least <= 0:
        return {}
    fit = [device for device in observation.devices if fitting(device, observation.levels, known)]
    wanted = observation.terms.least - sum(device.name in kept for device in fit)
    others = [device for device in fit if device.name not in kept]
    if wanted <= 0 or not others:
        return {}
    estimates, levels = Estimates.of(observation), {level.name: level for level in observation.levels}
    fastest, _ = FastestThatFits().decide(replace(observation, devices=tuple(others), answers=()), known)
    seconds = {
        device.name: estimates.task_s(device, levels[fastest.choices[device.name].level], part=1 / len(others))
        for device in others
        if device.name in fastest.choices
    }
    return {name: fastest.choices[name] for name in sorted(seconds, key=lambda name: (seconds[name], name))[:wanted]}


def _wrong(device: DeviceView | None, choice: object, observation: Observation, known: Known) -> Iterator[str]:
    """Whatever is wrong with a choice for a device, the worst first."""
    if device is None:
        yield "nobody asked about such a device"
        return
    if not isinstance(choice, Choice):
        yield f"a {type(choice).__name__} is no choice"
        return
    level = next((level for level in observation.levels if level.name == choice.level), None)
    if level is None:
        yield f"there is no level {choice.level!r}"
    elif level not in _may_have(device, level, observation, known):
        yield f"level {level.name} needs {level.needs_bytes / 1e6:.0f} MB, or was too large for it before"
    if choice.codec is not None and choice.codec not in observation.terms.codecs:
        yield f"deltas may not be in {choice.codec!r}"
    if not _within(choice.share, MIN_SHARE, MAX_SHARE):
        yield f"a share of {choice.share!r}"
    if not _within(choice.power, MIN_POWER, 1):
        yield f"a power of {choice.power!r}"


def _may_have(device: DeviceView, level: Level, observation: Observation, known: Known) -> tuple[Level | None, ...]:
    """The levels that fit; where none does, the smallest of all, and the smallest of this one's model."""
    if fits := fitting(device, observation.levels, known):
        return fits
    of_its_model = [one for one in observation.levels if one.model == level.model]
    return last_resort(device, observation.levels, known), last_resort(device, of_its_model, known)


def _within(value: object, low: float, high: float) -> bool:
    """Whether it is a number in this range; NaN is in none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
