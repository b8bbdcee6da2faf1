"""The real runs that the learning curve stands on: each is a configuration, and the file gives back what it was."""

from __future__ import annotations

import json
import pathlib

import pytest

from benchmarks import controller_runs
from benchmarks.controller_runs import FULL, STUDIES, Asked, Played, fitted, mixture, plain_of, played_of, table
from benchmarks.demo import write_toml
from coordinator.config import load_config
from coordinator.controller import learning
from coordinator.controller.calibrate import Part, predict
from coordinator.controller.profile import load_profile
from edge_sdk.wire.messages import DeltaCodec

PLAYED = Played(
    Asked(codec=DeltaCodec.INT4, seed=3, rounds=2),
    {"a": (0.25, 0.75), "b": (1.0, 0.0)},
    [[Part("a", 10, "fp32", DeltaCodec.INT4, 10)], [Part("b", 20, "fp32", DeltaCodec.INT4, 10)]],
    [(0.6, 0.8), (0.5, 0.7), (0.4, 0.5)],
    12.5,
)


@pytest.mark.parametrize("asked", FULL)
def test_a_run_is_a_configuration(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    """Its level comes first, and one that is the full model is there."""
    monkeypatch.setattr("benchmarks.assets.minilm", lambda: tmp_path)
    monkeypatch.setattr("benchmarks.assets.smollm2", lambda: tmp_path)
    write_toml(tmp_path / "c.toml", {**table(asked, STUDIES[asked.study]), "fleet": "f", "out": "out"})
    config = load_config(tmp_path / "c.toml")
    assert config.levels[0].name == asked.level
    assert "fp32" in {level.name for level in config.levels}
    assert config.training.delta_codec is asked.codec
    assert config.rounds.participants == asked.people


def test_no_two_runs_of_a_study_have_the_same_name() -> None:
    """What is predicted of runs is kept by their names."""
    assert len({asked.name for asked in FULL}) == len(FULL)


def test_a_run_survives_the_file() -> None:
    """What was measured is read again, and the loss is the mean of the groups'."""
    assert played_of(json.loads(json.dumps(plain_of(PLAYED)))).run() == PLAYED.run()
    assert PLAYED.run().losses == pytest.approx((0.7, 0.6, 0.45))


def test_a_mixture_is_the_share_of_each_label(tmp_path: pathlib.Path) -> None:
    """In the order of the study's labels."""
    (tmp_path / "it.csv").write_text("text,label\na,positive\nb,negative\nc,positive\nd,positive\n", encoding="utf-8")
    assert mixture(tmp_path / "it.csv") == (0.25, 0.75)


def test_the_published_curve_is_that_of_the_published_runs_and_is_shipped() -> None:
    """Fitting again what is in the file gives what is in the file, and that is in the default profile."""
    path = controller_runs.RESULTS / "controller-runs.json"
    kept = learning.from_plain(json.loads(path.read_text("utf-8"))["curves"]["speeches"]["curve"])
    runs = [one for one in controller_runs.read(path) if one.asked.study == "speeches"]
    found = fitted(runs)["speeches"].calibrated
    (run, *_) = (one.run() for one in runs)
    assert predict(run, found.curve, found.qualities) == pytest.approx(predict(run, kept, found.qualities), rel=1e-3)
    assert load_profile().curve == kept
