"""A learning curve fitted to real runs: what `Curve` says of every round of every run, against what was measured.

A run is predicted from its first loss alone: its rounds follow each other in the model, and what was measured in
between is not looked at. So the error is that of whoever simulates a whole run. It is told of runs that were left out
of the fit, each in its turn: the mean absolute difference of the losses after all rounds, as a share of the way from
the first loss to the floor.

Where rounds do not tell two constants apart, the fit leaves the one that they do not need where it began: each constant
is held, softly, to a first guess of it. Huber's loss keeps one bad round from bending the rest.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from coordinator.controller.learning import Curve, value
from coordinator.errors import CoordinatorError
from coordinator.history import History, read_history
from coordinator.policy.arrays import Floats
from coordinator.report import FULL
from edge_sdk.wire.messages import DeltaCodec

Mixtures: TypeAlias = Mapping[str, Sequence[float]]

LEAST_ROUNDS: Final = 2
HELD: Final = 0.03  # how far off a loss is worth as much as a constant that is a whole width off its first guess


class CalibrationError(CoordinatorError):
    """There is nothing that a curve could be fitted to."""


@dataclass(frozen=True, slots=True)
class Part:
    """A result that is in an adapter, by what its device trained."""

    device: str
    examples: int
    level: str
    codec: DeltaCodec
    steps: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is over: `losses` are of the full model on held-out rows, in nats, one before the first round and one
    after each; None where nobody measured. `mixtures` are the shares of each group in devices' rows; where it is empty
    there is one group.
    """

    name: str
    rounds: tuple[tuple[Part, ...], ...]
    losses: tuple[float | None, ...]
    mixtures: Mixtures = field(default_factory=dict)

    @property
    def first(self) -> float:
        """The loss before the first round; not a number where nobody measured it."""
        return math.nan if self.losses[0] is None else self.losses[0]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The curve of all runs; what levels turned out to be worth beside the best; predictions of runs left out."""

    curve: Curve
    qualities: Mapping[str, float]
    predicted: Mapping[str, tuple[float, ...]]


def run_of(path: pathlib.Path) -> Run:
    """The run that a ledger holds. Raises LedgerError, CalibrationError."""
    return of_history(str(path), read_history(path))


def of_history(name: str, history: History) -> Run:
    """The run, as far as it is aggregated. Raises CalibrationError where nothing can be learned from it."""
    rounds = tuple(
        tuple(Part(row.device, row.examples, row.level, row.codec, row.report.steps) for row in history.used(number))
        for number in range(1, history.done + 1)
    )
    return checked(Run(name, rounds, tuple(history.loss(version, FULL) for version in range(history.done + 1))))


def checked(run: Run) -> Run:
    """The run itself. Raises CalibrationError where nothing can be learned from it."""
    measured = [loss for loss in run.losses if loss is not None]
    devices = {part.device for parts in run.rounds for part in parts}
    lengths = {len(shares) for shares in run.mixtures.values()}
    problems = {
        f"has {len(run.rounds)} rounds; a curve takes {LEAST_ROUNDS} at least": len(run.rounds) < LEAST_ROUNDS,
        "has no held-out loss of the full model: set [evaluation] in the run's configuration": not measured,
        "has no held-out loss from before its first round": run.losses[0] is None,
        f"has {len(measured)} held-out losses; a curve takes {LEAST_ROUNDS + 1} at least": len(measured)
        <= LEAST_ROUNDS,
        "has a held-out loss that is no number": not np.isfinite(measured).all(),
        "has mixtures for some of its devices only": bool(run.mixtures) and not devices <= run.mixtures.keys(),
        "has mixtures of different length": len(lengths) > 1,
        "has a mixture whose shares do not sum to 1": any(
            min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-3) for shares in run.mixtures.values()
        ),
    }
    for problem, applies in problems.items():
        if applies:
            msg = f"{run.name} {problem}"
            raise CalibrationError(msg)
    return run


def calibrated(runs: Sequence[Run], qualities: Mapping[str, float] | None = None) -> Calibrated:
    """The curve that fits all `runs` best, and how far off it is on runs that it was not fitted to.

    `qualities` of levels that a ladder has measured are taken as they are; others are fitted. Of one run alone there is
    nothing to leave out: the error is then that of the fit itself. Raises CalibrationError.
    """
    if not runs:
        msg = "there is no run to fit a curve to"
        raise CalibrationError(msg)
    runs = [checked(run) for run in runs]
    if len({len(shares) for run in runs for shares in run.mixtures.values()}) > 1:
        msg = "the runs' mixtures are of different length: a curve has one number of groups"
        raise CalibrationError(msg)
    known = dict(qualities or {})
    curve, found = _fit(runs, known)
    predicted = {}
    for run in runs:
        others = [other for other in runs if other is not run] or [run]
        predicted[run.name] = predict(run, *_fit(others, known))
    errors = [error for run in runs for error in _errors(run, predicted[run.name])]
    curve = dataclasses.replace(curve, error=float(np.mean(errors)) / (curve.first - curve.floor))
    return Calibrated(curve, found, predicted)


def predict(run: Run, curve: Curve, qualities: Mapping[str, float]) -> tuple[float, ...]:
    """The losses that the curve says the run has, from its first one on."""
    losses, found = np.full(_groups(run), run.first), [run.first]
    for parts in run.rounds:
        weights = np.array([part.examples for part in parts], np.float64)
        worth = np.array([value(curve, qualities.get(part.level, 1.0), part.codec) for part in parts])
        mixtures = np.array([run.mixtures.get(part.device, (1.0,)) for part in parts]).reshape(len(parts), -1)
        steps = int(np.median([part.steps for part in parts])) if parts else 0
        losses = curve.after(losses, curve.amounts(weights / weights.sum(), worth, mixtures, steps))
        found.append(float(losses.mean()))
    return tuple(found)


def _groups(run: Run) -> int:
    return max((len(shares) for shares in run.mixtures.values()), default=1)


def _errors(run: Run, predicted: Sequence[float]) -> list[float]:
    pairs = zip(run.losses[1:], predicted[1:], strict=True)
    return [abs(said - loss) for loss, said in pairs if loss is not None]


# ---- the fit


@dataclass(frozen=True, slots=True)
class _Constant:
    """One number of the fit: where it begins, how far from there is far, and its bounds."""

    guess: float
    width: float
    low: float
    high: float


_CURVE: Final = {
    "gap": _Constant(0.2, 0.5, 0.0, 3.0),  # logarithm of first - floor, beside what the best run came down
    "speed": _Constant(-4.0, 3.0, -12.0, 3.0),  # its logarithm
    "steps_power": _Constant(0.7, 0.3, 0.0, 2.0),
    "people_power": _Constant(0.3, 0.3, 0.0, 1.5),
    "transfer": _Constant(0.5, 0.5, 0.0, 1.0),
    "onset": _Constant(1.0, 0.5, 0.01, 3.0),
}
_KEPT: Final = _Constant(1.0, 0.3, 0.0, 1.0)
_QUALITY: Final = _Constant(1.0, 0.5, 0.0, 2.0)


def _fit(runs: Sequence[Run], known: Mapping[str, float]) -> tuple[Curve, dict[str, float]]:
    """The curve and all levels' qualities."""
    from scipy.optimize import least_squares

    parts = [part for run in runs for one in run.rounds for part in one]
    codecs = sorted({part.codec for part in parts} - {DeltaCodec.FP32}, key=lambda codec: codec.value)
    commonest = Counter(part.level for part in parts).most_common(1)[0][0]
    known = known if known.keys() & {part.level for part in parts} else {**known, commonest: 1.0}
    levels = sorted({part.level for part in parts} - known.keys())
    constants = [*_CURVE.values(), *(_KEPT for _ in codecs), *(_QUALITY for _ in levels)]
    guesses, widths, lows, highs = np.array([dataclasses.astuple(constant) for constant in constants]).T
    first = float(np.mean([run.first for run in runs]))
    fallen = first - min(loss for run in runs for loss in run.losses if loss is not None)
    if not fallen > 0:
        msg = "no loss ever fell below the first one: there is no learning to fit a curve to"
        raise CalibrationError(msg)

    def of(numbers: Floats) -> tuple[Curve, dict[str, float]]:
        plain = [float(number) for number in numbers]
        named, beside = dict(zip(_CURVE, plain, strict=False)), plain[len(_CURVE) :]
        curve = Curve(
            first,
            first - fallen * math.exp(named["gap"]),
            math.exp(named["speed"]),
            named["steps_power"],
            named["people_power"],
            named["transfer"],
            named["onset"],
            dict(zip(codecs, beside, strict=False)),
        )
        return curve, {**known, **dict(zip(levels, beside[len(codecs) :], strict=True))}

    def residuals(numbers: Floats) -> Floats:
        curve, qualities = of(numbers)
        off = [
            (said - loss) / fallen
            for run in runs
            for loss, said in zip(run.losses[1:], predict(run, curve, qualities)[1:], strict=True)
            if loss is not None
        ]
        return np.concatenate([off, HELD * (numbers - guesses) / widths])

    found = least_squares(residuals, guesses, bounds=(lows, highs), loss="huber", f_scale=0.1)
    return of(found.x)
