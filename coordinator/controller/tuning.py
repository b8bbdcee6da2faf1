"""Goes on training a policy, in worlds around one run's own fleet. A process of its own: it imports torch.

The policy as it is competes with all that come of it, in the same worlds, which training does not see: where it wins,
nothing better was found.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Final

from coordinator.controller.reward import Weights
from coordinator.controller.trainer import POLICY
from coordinator.controller.training import Request, train
from coordinator.controller.worlds import Grounds
from coordinator.policy.learned import Learned

RATE: Final = 1e-4  # a third of training's: what the policy knows of other fleets is to stay
PLACES, ROUNDS, RUNS, EPOCHS = 8, 64, 64, 8


def tuned(
    base: Learned, grounds: Grounds, out: pathlib.Path, say: Callable[[str], None], *, steps: int, seed: int = 0
) -> pathlib.Path | None:
    """The file of a better policy than `base`, of `steps` more simulated rounds; None where none was found.

    Its reward is weighted as in the base's training. Raises OSError, PolicyFileError.
    """
    request = Request(
        steps=steps,
        seed=seed,
        places=PLACES,
        rounds=ROUNDS,
        rate=RATE,
        shown=RUNS,
        imitated=EPOCHS,
        sharp=base.sharp,
    )
    best = train(request, grounds, Weights.of(base.card.get("weights")), out, say, start=base)
    if best.card["steps"] > 0:
        return out / POLICY
    (out / POLICY).unlink()
    return None
