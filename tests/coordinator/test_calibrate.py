"""A curve that runs were made from is found again in them; what no curve can be fitted to is said in one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from coordinator.controller.calibrate import (
    CalibrationError,
    Part,
    Run,
    calibrated,
    checked,
    of_history,
    predict,
    run_of,
)
from coordinator.controller.calibrate_cli import add_calibrate
from coordinator.controller.learning import Curve
from coordinator.controller.profile import load_profile
from coordinator.events import AggregateRound
from coordinator.history import read_history
from coordinator.ledger import Ledger
from coordinator.policy.types import Choice, Level
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import DeltaCodec
from tests.coordinator.samples import make_answer, make_hello, make_report, make_task

FP32, INT4 = DeltaCodec.FP32, DeltaCodec.INT4
KNOWN = Curve(4.0, 3.4, 0.02, 0.6, 0.35, 0.5, 0.4, {INT4: 0.7})
QUALITIES = {"fp32": 1.0, "half": 0.5}
NOISE = 0.004  # nats, where 0.6 are to be learned
MIXTURES = {"0": (1.0, 0.0), "1": (0.0, 1.0), "2": (0.5, 0.5), "3": (0.2, 0.8), "4": (0.6, 0.4), "5": (0.5, 0.5)}


def made(
    name: str,
    devices: Sequence[str],
    steps: int,
    seed: int,
    codec: DeltaCodec = FP32,
    level: str = "fp32",
    rounds: int = 7,
    mixtures: Mapping[str, Sequence[float]] = MIXTURES,
) -> Run:
    """A run that follows the known curve, with noise in what was measured."""
    parts = tuple(Part(device, 100 + 20 * k, level, codec, steps) for k, device in enumerate(devices))
    run = Run(name, (parts,) * rounds, (KNOWN.first, *[None] * rounds), mixtures)
    noise = np.random.default_rng(seed).normal(0, NOISE, rounds)
    exact = predict(run, KNOWN, QUALITIES)
    return dataclasses.replace(run, losses=(exact[0], *(float(e + n) for e, n in zip(exact[1:], noise, strict=True))))


RUNS = (
    made("four", "0134", 10, 0),
    made("two", "25", 10, 1),
    made("six", "012345", 10, 2),
    made("one", "1", 20, 3),
    made("few steps", "0145", 4, 4),
    made("many steps", "25", 40, 5),
    made("int4", "0134", 10, 6, codec=INT4),
    made("half", "2345", 10, 7, level="half"),
    made("all", "012345", 20, 8, codec=INT4, level="half"),
)


def test_a_known_curve_is_found_again_in_the_runs_that_it_made() -> None:
    """Its constants within what the noise leaves open, and a run of another kind is predicted within the noise."""
    found = calibrated(RUNS)
    curve = found.curve
    assert curve.first == pytest.approx(KNOWN.first)
    assert curve.floor == pytest.approx(KNOWN.floor, abs=0.1)
    assert curve.steps_power == pytest.approx(KNOWN.steps_power, abs=0.08)
    assert curve.people_power == pytest.approx(KNOWN.people_power, abs=0.08)
    assert curve.kept[INT4] == pytest.approx(KNOWN.kept[INT4], abs=0.08)
    assert found.qualities["fp32"] == 1.0
    assert found.qualities["half"] == pytest.approx(QUALITIES["half"], abs=0.08)
    assert curve.error < 0.03
    unseen = made("unseen", "0235", 15, 9, codec=INT4, rounds=10)
    assert predict(unseen, curve, found.qualities) == pytest.approx(predict(unseen, KNOWN, QUALITIES), abs=4 * NOISE)


def test_one_run_alone_makes_a_curve_that_follows_it() -> None:
    """What it does not tell stays at the first guess: of one device, one codec and one number of steps."""
    run = made("one", "2", 10, 0, mixtures={})
    found = calibrated([run])
    assert found.curve.error < 0.03
    assert list(predict(run, found.curve, found.qualities)) == pytest.approx(list(run.losses), abs=4 * NOISE)


def test_a_quality_that_is_known_is_not_fitted() -> None:
    """A ladder measured it."""
    assert calibrated(RUNS[6:], {"fp32": 1.0, "half": 0.3}).qualities == {"fp32": 1.0, "half": 0.3}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rounds": RUNS[0].rounds[:1], "losses": RUNS[0].losses[:2]}, "four has 1 rounds"),
        ({"losses": (None,) * 8}, r"four has no held-out loss of the full model: set \[evaluation\]"),
        ({"losses": (None, *RUNS[0].losses[1:])}, "four has no held-out loss from before its first round"),
        ({"losses": (4.0, None, None, None, None, None, None, 3.9)}, "four has 2 held-out losses"),
        ({"losses": (*RUNS[0].losses[:7], float("nan"))}, "four has a held-out loss that is no number"),
        ({"mixtures": {"0": (1.0, 0.0)}}, "four has mixtures for some of its devices only"),
        ({"mixtures": {**MIXTURES, "1": (1.0,)}}, "four has mixtures of different length"),
        ({"mixtures": {**MIXTURES, "1": (0.9, 0.9)}}, "four has a mixture whose shares do not sum to 1"),
    ],
)
def test_a_run_that_tells_nothing_is_refused(change: dict[str, object], complaint: str) -> None:
    """In one line that says what it lacks."""
    with pytest.raises(CalibrationError, match=complaint):
        checked(dataclasses.replace(RUNS[0], **change))  # type: ignore[arg-type]


def test_runs_that_make_no_curve_are_refused() -> None:
    """None at all, of different groups, or without any learning."""
    flat = dataclasses.replace(RUNS[0], losses=(4.0, *[4.1] * 7))
    for runs, complaint in (
        ((), "no run"),
        ((RUNS[0], made("other", "01", 4, 0, mixtures={"0": (1.0,), "1": (1.0,)})), "one number of groups"),
        ((flat,), "no loss ever fell"),
    ):
        with pytest.raises(CalibrationError, match=complaint):
            calibrated(runs)


@pytest.fixture
def ledger(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run of three rounds: of the second the first attempt was repeated."""
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, "test", "digest") as ledger:
        ledger.begin(blob_of(b"0"))
        ledger.hello(make_hello("a"))
        ledger.evaluation(0, "full", 4.0, None, 10)
        for round_, attempt in ((1, 1), (2, 1), (2, 2), (3, 1)):
            ledger.open_round(round_, attempt, 1, 1)
            task = f"t.{round_}.{attempt}"
            ledger.give_task("a", Choice("int8"), attempt, dataclasses.replace(make_task(task), round=round_))
            ledger.commit_result(task, blob_of(task.encode()), 0.1, make_report(), make_answer(examples=5 + attempt))
            if (round_, attempt) == (2, 1):
                ledger.repeat_round(2, 1, "too few")
                continue
            ledger.commit_adapter(AggregateRound(round_, attempt, blob_of(b""), (task,)), blob_of(b"%d" % round_), 0.0)
            ledger.evaluation(round_, "full", 4.0 - 0.1 * round_, None, 10)
    return path


def test_a_ledger_is_a_run(ledger: pathlib.Path) -> None:
    """What is in its adapters, by round, and the full model's losses; a repeated attempt is not in it."""
    run = run_of(ledger)
    assert [[(part.device, part.level, part.examples) for part in parts] for parts in run.rounds] == [
        [("a", "int8", 6)],
        [("a", "int8", 7)],
        [("a", "int8", 6)],
    ]
    assert run.losses == pytest.approx((4.0, 3.9, 3.8, 3.7))
    assert of_history("it", read_history(ledger)) == dataclasses.replace(run, name="it")


def calibrate(*words: str | pathlib.Path) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser()
    add_calibrate(parser.add_subparsers())
    parsed = parser.parse_args(["calibrate", *map(str, words)])
    status: int = parsed.run(parsed)
    return status


def test_the_command_writes_a_profile(
    tmp_path: pathlib.Path, ledger: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The given one's levels with the new curve, and it says how far off that is."""
    out = tmp_path / "profile.json"
    (tmp_path / "mixtures.json").write_text('{"a": [0.25, 0.75]}')
    assert calibrate(ledger, "--mixtures", tmp_path / "mixtures.json", "--out", out) == 0
    profile, base = load_profile(out), load_profile()
    assert [named(level) for level in profile.levels] == [named(level) for level in base.levels]
    assert profile.curve.first == pytest.approx(4.0)
    assert "on the run itself" in capsys.readouterr().out


def named(level: Level) -> tuple[str, int, int]:
    """What calibration leaves as it is."""
    return level.name, level.needs_bytes, level.size_bytes


def test_a_command_with_wrong_input_writes_nothing(tmp_path: pathlib.Path, ledger: pathlib.Path) -> None:
    """One line, and no file."""
    (tmp_path / "mixtures.json").write_text(json.dumps([1, 2]))
    with pytest.raises(CalibrationError, match="has no mixtures such as"):
        calibrate(ledger, "--mixtures", tmp_path / "mixtures.json", "--out", tmp_path / "profile.json")
    assert not (tmp_path / "profile.json").exists()
