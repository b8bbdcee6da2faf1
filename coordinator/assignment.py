"""Who gets which level: the policy with its state, what it has not been shown yet, and who sits out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from coordinator.fleet import Device
from coordinator.policy.types import Answer, DeviceView, Level, Observation, Policy

S = TypeVar("S")


class Assignment(Generic[S]):
    """Asks `policy` about `levels`, which are best first. State alone; `rounds` says when."""

    def __init__(self, policy: Policy[S], levels: tuple[Level, ...], answers: Iterable[Answer]) -> None:
        """`answers` are those of the past: the policy learns them again."""
        self._policy, self._state, self._levels = policy, policy.initial(), levels
        self._answers = list(answers)
        self._sits_out: dict[str, str] = {}  # device: the session that said so, or "" for this attempt alone

    def observe(self, answer: Answer) -> None:
        """Show it to the policy when it is asked next."""
        self._answers.append(answer)

    def sit_out(self, device: str, session: str = "") -> None:
        """The device gets no task in this attempt, or, given its session, as long as that lasts."""
        self._sits_out[device] = session

    def new_attempt(self) -> None:
        """Those who sat out one attempt take part again."""
        self._sits_out = {name: session for name, session in self._sits_out.items() if session}

    def decide(self, devices: Iterable[Device], fleet: Iterable[Device]) -> dict[str, str]:
        """The level of each of `devices`, some of the `fleet`, that takes part and for which the policy has one."""
        views = tuple(_view(device) for device in devices if self._takes_part(device))
        if not views:
            return {}
        observation = Observation(views, self._levels, tuple(self._answers), tuple(map(_view, fleet)))
        self._answers.clear()
        decision, self._state = self._policy.decide(observation, self._state)
        return {name: choice.level for name, choice in decision.choices.items()}

    def _takes_part(self, device: Device) -> bool:
        said = self._sits_out.get(device.hello.device)
        return said is None or said not in {"", device.hello.session}


def _view(device: Device) -> DeviceView:
    return DeviceView(device.hello.device, device.hello.budget_bytes)
