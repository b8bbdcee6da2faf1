"""Constraint-aware federated finetuning: one model for all, and as many trained layers as each device can afford.

Levels that differ in nothing but how many of their last layers train are one model. Of the models the one is chosen
of which the fleet trains the most layers on average, a device that fits none of its levels counting as 0; then each
device gets the level of that model with the most trained layers within its limits, or none:

- memory: the level fits the device's budget, see `fitting`: what was measured, where the paper adds up tensors;
- upload: the delta of the level, in the codec of the tasks, has at most `max_upload_bytes`;
- time: the device never took longer than `max_task_s` for a task of so many layers of that model, or fewer.

Where two models tie, the one configured first is taken. https://arxiv.org/abs/2411.07826, there with analytic costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coordinator.policy.fitting import Known, fitting, last_resort
from coordinator.policy.types import Choice, Decision, DeviceView, Level, Observation
from edge_sdk.wire.messages import DeltaCodec

Levels = tuple[Level, ...]
Models = dict[str, Levels]


@dataclass(frozen=True, slots=True)
class Caff:
    """See the module; a limit of 0 is none."""

    max_upload_bytes: int = 0
    max_task_s: float = 0

    def initial(self) -> Known:
        """Nothing was exceeded yet."""
        return Known()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """The level with the most trained layers that each device can afford, all of the same model."""
        known = state.after(observation.answers)
        models = _models(level for level in observation.levels if self._may_upload(level, observation.terms.codec))
        if not models:
            return Decision({}), known
        fits = {
            device: fitting(device, observation.levels, known) for device in (*observation.fleet, *observation.devices)
        }
        levels = max(models.values(), key=lambda levels: self._trained(observation.fleet, levels, fits, known))
        chosen = {device.name: self._choose(device, levels, fits[device], known) for device in observation.devices}
        return Decision({name: Choice(level.name) for name, level in chosen.items() if level is not None}), known

    def _trained(
        self, fleet: Iterable[DeviceView], levels: Levels, fits: Mapping[DeviceView, Levels], known: Known
    ) -> int:
        """How many layers of this model the fleet would train in all."""
        best = (self._best(device, levels, fits[device], known) for device in fleet)
        return sum(level.trained_layers for level in best if level is not None)

    def _choose(self, device: DeviceView, levels: Levels, fits: Levels, known: Known) -> Level | None:
        """The best; where nothing at all fits the device, the smallest may be tried."""
        if fits:
            return self._best(device, levels, fits, known)
        return last_resort(device, self._in_time(device, levels, known), known)

    def _best(self, device: DeviceView, levels: Levels, fits: Levels, known: Known) -> Level | None:
        affordable = (level for level in self._in_time(device, levels, known) if level in fits)
        return max(affordable, key=lambda level: level.trained_layers, default=None)

    def _in_time(self, device: DeviceView, levels: Levels, known: Known) -> Levels:
        """Fewer layers than any for which the device was too slow."""
        slow = [
            level.trained_layers
            for level in levels
            if 0 < self.max_task_s < known.took_s.get((device.name, level.name), 0.0)
        ]
        return tuple(level for level in levels if not slow or level.trained_layers < min(slow))

    def _may_upload(self, level: Level, codec: DeltaCodec) -> bool:
        return not self.max_upload_bytes or level.upload_bytes.get(codec, 0) <= self.max_upload_bytes


def _models(levels: Iterable[Level]) -> Models:
    """The levels of each model, models in the order of their first level."""
    found: Models = {}
    for level in levels:
        found[level.model] = (*found.get(level.model, ()), level)
    return found
