"""Who gets what: the policy with its state, what devices are known to be, and who sits out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from coordinator.fleet import Device
from coordinator.policy.acquaintance import Acquaintance
from coordinator.policy.hard_limits import HardLimits
from coordinator.policy.types import Answer, Decision, DeviceView, Level, Observation, Policy, Terms

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision and all that it was made from, beside the policy's state.

    That is what the decisions before it left, back to one that is `fresh`: there the `policy`, see `name_of`, had seen
    nothing.
    """

    observation: Observation
    decision: Decision
    policy: str
    fresh: bool


def name_of(policy: Policy[S]) -> str:
    """What a policy is called where decisions are kept: its class, and the file's digest of one that is from a file."""
    return f"{type(policy).__name__} {getattr(policy, 'digest', '')}".strip()


class Assignment(Generic[S]):
    """Asks `policy`, within hard limits, about `levels`, which are best first. State alone; `rounds` says when."""

    def __init__(self, policy: Policy[S], levels: tuple[Level, ...], answers: Iterable[Answer]) -> None:
        """`answers` are those of the past, oldest first: the policy learns them again."""
        self._policy, self._levels = HardLimits(policy), levels
        self._state, self._fresh = self._policy.initial(), True
        self._acquaintance = Acquaintance.of(levels)
        self._answers = list(answers)
        self._sits_out: dict[str, str] = {}  # device: the session that said so, or "" for this attempt alone
        self._left_out: dict[str, str] = {}  # device: its session, when the policy gave it nothing in this attempt

    def use(self, policy: Policy[S]) -> None:
        """From now on this one decides; it goes on from the other's state."""
        self._policy = HardLimits(policy)

    def observe(self, answer: Answer) -> None:
        """Show it to the policy when it is asked next."""
        self._answers.append(answer)

    def sit_out(self, device: str, session: str = "") -> None:
        """The device gets no task in this attempt, or, given its session, as long as that lasts."""
        self._sits_out[device] = session

    def new_attempt(self) -> None:
        """Those who sat out one attempt take part again."""
        self._sits_out = {name: session for name, session in self._sits_out.items() if session}
        self._left_out = {}

    def decide(
        self,
        devices: Iterable[Device],
        fleet: Iterable[Device],
        terms: Terms,
        barred: Mapping[str, frozenset[str]],
    ) -> Decided | None:
        """What each of `devices`, some of the `fleet`, gets that takes part; None where none of them does.

        None gets a level that it is `barred` from.

        Whom the policy left out is asked about again in the next attempt, or when it comes back as another session.
        """
        asked = [device for device in devices if self._takes_part(device)]
        if not asked:
            return None
        answers = tuple(self._answers)
        self._answers.clear()
        self._acquaintance = self._acquaintance.after(answers)
        views = tuple(dataclasses.replace(v, barred=barred.get(v.name, v.barred)) for v in self._views(asked))
        seen = Observation(views, self._levels, answers, self._views(fleet), terms)
        decision, self._state = self._policy.decide(seen, self._state)
        fresh, self._fresh = self._fresh, False
        sessions = {device.hello.device: device.hello.session for device in asked}
        self._left_out |= {name: session for name, session in sessions.items() if name not in decision.choices}
        return Decided(seen, decision, name_of(self._policy.policy), fresh)

    def _views(self, devices: Iterable[Device]) -> tuple[DeviceView, ...]:
        hellos = (device.hello for device in devices)
        return tuple(
            self._acquaintance.view(hello.device, hello.budget_bytes, hello.cores, hello.battery) for hello in hellos
        )

    def _takes_part(self, device: Device) -> bool:
        said = self._sits_out.get(device.hello.device)
        left_out = self._left_out.get(device.hello.device) == device.hello.session
        return not left_out and (said is None or said not in {"", device.hello.session})
