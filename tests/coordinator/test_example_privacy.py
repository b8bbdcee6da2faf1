"""What devices' own noise promises is counted for the one that is worst off, or is not promised."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics

import pytest

from coordinator.config import Config
from coordinator.example_privacy import COVERS, epsilon, epsilons, standing
from coordinator.guards import PrivacyConfig, Where
from coordinator.history import History, ResultRow, TaskRow
from coordinator.policy.types import Choice
from coordinator.report import make_report
from coordinator.task_book import Place, TaskMaker
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.privacy import ExampleNoise, rows_at_once
from tests.coordinator.samples import BLOB, make_config
from tests.coordinator.samples import make_report as make_said

PRIVACY = PrivacyConfig(where=Where.DEVICE, noise_multiplier=1.0, clip_norm=0.5, delta=1e-5)
NORMAL = statistics.NormalDist()


def config_of(folder: pathlib.Path, privacy: PrivacyConfig = PRIVACY) -> Config:
    """Three steps of one row."""
    return dataclasses.replace(make_config(folder), privacy=privacy)


def history_of(rows: dict[str, int], tasks: dict[str, int], state: str = "committed") -> History:
    """Devices with so many rows, and so many tasks, of which one has a result."""
    said = {name: dataclasses.replace(make_said(), sampled_rows=count) for name, count in rows.items()}
    results = tuple(
        ResultRow(1, 1, name, "large", BLOB.sha256, 0, 3, 0.0, report, DeltaCodec.FP32, 1)
        for name, report in said.items()
    )
    given = tuple(TaskRow(1, 1, name, "large", state, "") for name, count in tasks.items() for _ in range(count))
    nothing = {field.name: () for field in dataclasses.fields(History)}
    return History(**{**nothing, "run": "r", "name": "n", "tasks": given, "results": results, "open_tasks": 0})  # type: ignore[arg-type]


def exact(noise: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism: B. Balle and Y.-X. Wang, ICML 2018, theorem 8, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        lost = NORMAL.cdf(0.5 / noise - middle * noise) - math.exp(middle) * NORMAL.cdf(-0.5 / noise - middle * noise)
        low, high = (middle, high) if lost > delta else (low, middle)
    return high


def test_one_step_of_all_rows_is_a_gaussian_mechanism() -> None:
    """Never less than what it truly costs, and little more."""
    for noise in (1.0, 4.0):
        privacy = dataclasses.replace(PRIVACY, noise_multiplier=noise)
        found, true = epsilon(privacy, 1, 1.0, 1), exact(noise, PRIVACY.delta)
        assert true <= found <= 1.25 * true


def test_more_costs_more_and_rarer_costs_less() -> None:
    """Tasks and steps add up, however they are split; a row that is seldom in a step is hidden better."""
    assert epsilon(PRIVACY, 2, 0.01, 10) == epsilon(PRIVACY, 1, 0.01, 20) > epsilon(PRIVACY, 1, 0.01, 10)
    assert epsilon(PRIVACY, 1, 0.01, 10) < epsilon(PRIVACY, 1, 0.1, 10) < epsilon(PRIVACY, 1, 1.0, 10)


def test_the_worst_off_is_told(tmp_path: pathlib.Path) -> None:
    """The device with the fewest rows, or the most tasks; in the report, with what it covers."""
    config, history = config_of(tmp_path), history_of({"a": 1000, "b": 50}, {"a": 2, "b": 2})
    found = epsilons(config, PRIVACY, history)
    assert found["b"] > found["a"] > 0
    assert standing(config, history).epsilon == found["b"]
    report = json.loads(json.dumps(make_report(history, config, "done", ())))["privacy"]
    assert report["guarantee"] is True
    assert report["epsilon"] == found["b"]
    assert report["covers"] == COVERS
    assert "one row is added" in report["says"]


def test_whatever_was_given_counts_as_done(tmp_path: pathlib.Path) -> None:
    """A task that was lost or refused may have been seen; only one that was declined was never begun. Who has never
    said how many rows it has is counted as if every row were in every step.
    """
    config = config_of(tmp_path)
    done = epsilons(config, PRIVACY, history_of({"a": 100}, {"a": 3}))["a"]
    assert epsilons(config, PRIVACY, history_of({"a": 100}, {"a": 3}, "refused"))["a"] == done
    assert epsilons(config, PRIVACY, history_of({"a": 100}, {"a": 3}, "declined")) == {}
    assert epsilons(config, PRIVACY, history_of({}, {"a": 3}))["a"] == epsilon(PRIVACY, 3, 1.0, 3) > done


@pytest.mark.parametrize(
    ("privacy", "rows", "doubt"),
    [
        (dataclasses.replace(PRIVACY, noise_multiplier=0.0), 100, "there is no noise"),
        (PRIVACY, 0, "a did not say of how many rows it sampled"),
    ],
)
def test_no_guarantee_is_said(tmp_path: pathlib.Path, privacy: PrivacyConfig, rows: int, doubt: str) -> None:
    """Without noise, or with a device whose results do not look as if it had added any."""
    found = standing(config_of(tmp_path, privacy), history_of({"a": rows}, {"a": 1}))
    assert found.epsilon is None
    assert str(found) == f"no guarantee: {doubt}"


def test_tasks_say_what_devices_are_to_add(tmp_path: pathlib.Path) -> None:
    """And the coordinator adds nothing of its own."""
    config = config_of(tmp_path)
    assert config.central_privacy is None
    maker = TaskMaker("run", config.training, config.aggregation.rule, None, config.example_noise)
    task = maker.make(Place("a", 1, 1), Choice("large"), artifact=BLOB, adapter=BLOB, left_s=1.0)
    assert task.example_noise == ExampleNoise(0.5, 1.0)
    assert rows_at_once(task.batch, task.example_noise) == 1
