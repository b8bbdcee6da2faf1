"""Where a run is: written by `rounds` alone, read by all that decides with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.round_states import TRANSITIONS, State, Trigger
from edge_sdk.wire.blobs import Blob


@dataclass(slots=True)
class Stage:
    """An attempt at a round of `count`, which starts from `adapter`, or from what is `narrowed` of it for a level.

    An open one closes at `deadline_at_s`; before it opens, it waits until `wait_until_s` for those that are expected.
    `losses` are held-out ones by version.
    """

    state: State
    round: int
    attempt: int
    count: int
    adapter: Blob
    narrowed: Mapping[str, Blob]
    losses: dict[int, float]
    deadline_at_s: float
    wait_until_s: float

    @property
    def gathers(self) -> int:
        """The version of the adapter in which a result counts that comes now."""
        return self.round + (self.state is State.AGGREGATING)

    def go(self, trigger: Trigger) -> None:
        """Change the state. Raises KeyError where there is no such way."""
        self.state = TRANSITIONS[self.state][trigger]
