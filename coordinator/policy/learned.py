"""A policy that was trained: PPO over action branches, see `coordinator.controller`. NumPy alone; no torch here.

1. What a device may be given is masked, not learned: a level that does not fit it has no probability.
2. It draws by its probabilities, for of two devices that look alike it may want one. The lots come from the round and
   the file's own seed, so that the same observation gives the same decision.
3. Where none of the devices was drawn, the likeliest is taken: a round of nobody is none.
4. A device that nothing fits is offered the smallest level once, as by every policy, see `fitting`.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from coordinator.errors import CoordinatorError
from coordinator.policy.actions import BESIDE, BRANCHES, LEVEL, decision_of, masks
from coordinator.policy.arrays import Bools, Floats32, Ints
from coordinator.policy.encoder import SHAPES, scores
from coordinator.policy.estimates import Fetching
from coordinator.policy.features import OF_DEVICE, OF_FLEET, OF_PAIR, Features, features
from coordinator.policy.fitting import Known, last_resort
from coordinator.policy.types import Choice, Decision, Level, Observation

DEFAULT: Final = pathlib.Path(__file__).with_name("default_policy.safetensors")
FORMAT: Final = "fedpeat-policy-1"
MAX_BYTES: Final = 64 << 20
# What the numbers mean; a file that was trained on other features is refused, not misread.
MEANING: Final = json.dumps([OF_DEVICE, OF_PAIR, OF_FLEET, BRANCHES, BESIDE])


class PolicyFileError(CoordinatorError):
    """A policy file that is missing, damaged, or of another version."""


@dataclass(frozen=True, slots=True)
class Learned:
    """The policy in a file. `card` says how it was trained; the more `sharp`, the rarer it draws what is unlikely.

    `people_power` is that of the curve of the profile that it was trained for, see `features`; `digest` the SHA-256 of
    its file, where it is from one.
    """

    arrays: Mapping[str, Floats32] = field(repr=False)
    card: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    sharp: float = 1.0
    people_power: float = 0.0
    digest: str = ""

    def initial(self) -> Known:
        """Nothing was exceeded yet."""
        return Known()

    def decide(self, observation: Observation, state: Known) -> tuple[Decision, Known]:
        """See the module."""
        known = state.after(observation.answers)
        if not observation.devices or not observation.levels:
            return Decision({}), known
        found = features(observation, known, Fetching(observation.levels), self.people_power)
        decision = decision_of(self._drawn(observation, found), observation, found)
        return Decision({**_resorts(observation, known, found.fits), **decision.choices}), known

    def _drawn(self, observation: Observation, found: Features) -> Ints:
        of = scores(self.arrays, found)
        levels, codecs, shares = masks(observation, found)
        rng = np.random.default_rng([self.seed, max(observation.terms.round, 0)])
        of_level = _masked(of.levels, levels)
        columns = [_lots(rng, of_level * self.sharp)]
        for values, allowed in ((of.codecs, codecs), (of.shares, shares), (of.powers, None)):
            columns.append(_masked(values, allowed).argmax(axis=1))
        actions: Ints = np.stack(columns, axis=1)
        if not (actions[:, LEVEL] > 0).any() and found.fits.any():
            margin = of_level[:, 1:].max(axis=1) - of_level[:, 0]
            one = int(margin.argmax())
            actions[one, LEVEL] = 1 + int(of_level[one, 1:].argmax())
        return actions


def load_policy(path: pathlib.Path = DEFAULT) -> Learned:
    """Read a policy file. Raises PolicyFileError with one line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            msg = f"{path} is no policy: it has more than {MAX_BYTES >> 20} MiB"
            raise PolicyFileError(msg)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(path, framework="np") as opened:
            notes = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        msg = f"{path} cannot be read as a policy: {error}"
        raise PolicyFileError(msg) from error
    if notes.get("format") != FORMAT or notes.get("meaning") != MEANING:
        msg = f"{path} is a policy of another version ({notes.get('format', 'unknown')}): train it again"
        raise PolicyFileError(msg)
    shapes = {name: array.shape for name, array in arrays.items() if name in SHAPES}
    if shapes != dict(SHAPES) or any(array.dtype != np.float32 for array in arrays.values()):
        msg = f"{path} is no policy: its arrays are not those of the network"
        raise PolicyFileError(msg)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        msg = f"{path} is no policy: it has numbers that are not finite"
        raise PolicyFileError(msg)
    try:
        card = json.loads(notes.get("card", "{}"))
        numbers = (float(card.get("sharp", 1.0)), float(card.get("people_power", 0.0)))
        return Learned(arrays, card, int(card.get("seed", 0)), *numbers, digest)
    except (ValueError, TypeError, AttributeError) as error:
        msg = f"{path} is no policy: its card cannot be read: {error}"
        raise PolicyFileError(msg) from error


def learned(file: pathlib.Path | None = None) -> Learned:
    """The policy in that file, or the one in the package. Raises PolicyFileError."""
    return load_policy(DEFAULT if file is None else file)


def _masked(values: Floats32, allowed: Bools | None) -> Floats32:
    return values if allowed is None else np.where(allowed, values, np.float32(-1e8))


def _lots(rng: np.random.Generator, values: Floats32) -> Ints:
    """One of each row, drawn by softmax (Gumbel-max)."""
    drawn: Ints = (values + rng.gumbel(size=values.shape)).argmax(axis=1)
    return drawn


def _resorts(observation: Observation, known: Known, fits: Bools) -> dict[str, Choice]:
    """For devices that nothing fits."""
    found: dict[str, Choice] = {}
    for device, fitting_levels in zip(observation.devices, fits, strict=True):
        level: Level | None = None if fitting_levels.any() else last_resort(device, observation.levels, known)
        if level is not None:
            found[device.name] = Choice(level.name)
    return found
