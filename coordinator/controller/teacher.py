"""What the network imitates first: the analytic policy, in the knowledge that some devices often do not answer.

A device that lost tasks is reckoned with by what a round with it takes in the mean: its task, and with the chance that
nothing comes of it the deadline. The chance is that of a Beta distribution's mean, which begins near 1 and learns from
what each device answered.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from coordinator.controller.baselines import kkt_for
from coordinator.controller.simulator import World
from coordinator.policy.estimates import known_or
from coordinator.policy.fitting import Known
from coordinator.policy.kkt import Kkt
from coordinator.policy.types import Decision, DeviceView, Observation

ANSWERS, LOSSES = 3.0, 0.2  # what is thought to have been seen of a device that nothing was seen of


@dataclass(frozen=True, slots=True)
class Careful:
    """See the module."""

    analytic: Kkt

    def initial(self) -> Known:
        """As the analytic policy's."""
        return self.analytic.initial()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """See the module."""
        deadline_s = known_or(observation.terms.deadline_s)
        devices = tuple(_seen(device, deadline_s) for device in observation.devices)
        return self.analytic.decide(dataclasses.replace(observation, devices=devices), state)


def _seen(device: DeviceView, deadline_s: float) -> DeviceView:
    lost = (device.asked - device.answered + LOSSES) / (device.asked + ANSWERS + LOSSES)
    return dataclasses.replace(device, beside_s=device.beside_s + lost * deadline_s)


def careful_for(world: World) -> Careful:
    """The teacher for a world."""
    return Careful(kkt_for(world))
