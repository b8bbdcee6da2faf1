"""What a run has to show comes from the ledger, and a run that did badly says so."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from coordinator.config import Config, EvaluationConfig
from coordinator.course import RoundsConfig
from coordinator.events import AggregateRound
from coordinator.history import History, read_history
from coordinator.ledger import Ledger
from coordinator.policy.types import Choice
from coordinator.report import checks, make_report
from coordinator.screen import Screen, evaluation_table, result_table
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.messages import DeclineReason, TaskDeclined
from tests.coordinator.samples import MB, make_answer, make_config, make_hello, make_task
from tests.coordinator.samples import make_report as report_of

ROOT = pathlib.Path(__file__).parents[2]


def played(tmp_path: pathlib.Path, *, peak_bytes: int = 90 * MB, full_loss: float = 2.5) -> tuple[Config, History]:
    """A run of one round: one result, one decline, evaluated."""
    config = dataclasses.replace(
        make_config(tmp_path, rounds=RoundsConfig(count=1, devices=2)), evaluation=EvaluationConfig(path=tmp_path)
    )
    with Ledger(tmp_path / "ledger.sqlite", "test", "digest") as ledger:
        ledger.begin(blob_of(b"0"))
        ledger.open_round(1, 1, 2, 2)
        for device in "ab":
            ledger.hello(make_hello(device))
            ledger.give_task(device, Choice("large"), 1, make_task(f"t.{device}"), "large, fp32 delta")
        report = report_of(peak_bytes=peak_bytes)
        ledger.commit_result("t.a", blob_of(b"delta"), 0.1, report, make_answer("a", report))
        ledger.decline(TaskDeclined("t.b", DeclineReason.OVER_BUDGET, 300 * MB, 100 * MB, "no"))
        ledger.commit_adapter(AggregateRound(1, 1, blob_of(b"0"), ("t.a",)), blob_of(b"1"), 0.25)
        for version, kind, loss in (
            (0, "full", 3.0),
            (0, "emulator", 3.1),
            (1, "full", full_loss),
            (1, "emulator", 2.6),
        ):
            ledger.evaluation(version, kind, loss, None, 10)
        return config, read_history(ledger.path)


def test_the_report_has_every_task(tmp_path: pathlib.Path) -> None:
    """Results with their measures, declines with what they would need, truncation, both losses, versions; all JSON."""
    config, history = played(tmp_path)
    report = json.loads(json.dumps(make_report(history, config, "done", checks(history, config, []))))
    (one,) = report["rounds"]
    assert one["truncation"] == 0.25
    assert one["up_bytes"] == len(b"delta")
    assert one["tasks"][0]["delta_codec"] == "fp32"
    assert [(t["device"], t["outcome"]) for t in one["tasks"]] == [("a", "done"), ("b", "declined")]
    assert one["tasks"][0]["peak_bytes"] == 90 * MB
    assert [(d["device"], d["words"]) for d in one["decisions"]] == [(name, "large, fp32 delta") for name in "ab"]
    assert one["tasks"][1]["needed_bytes"] == 300 * MB
    assert [(e["version"], e["full_loss"], e["emulator_loss"]) for e in report["evaluations"]] == [
        (0, 3.0, 3.1),
        (1, 2.5, 2.6),
    ]
    assert report["versions"]["numpy"]
    assert all(check["passed"] for check in report["checks"])


@pytest.mark.parametrize(
    ("changes", "damaged", "failed"),
    [
        ({"peak_bytes": 101 * MB}, [], "budgets"),
        ({"peak_bytes": 0}, [], "budgets"),
        ({"full_loss": 3.0}, [], "improved"),
        ({}, ["abc"], "bytes"),
    ],
)
def test_a_run_that_did_badly_says_so(
    tmp_path: pathlib.Path, changes: dict[str, float], damaged: list[str], failed: str
) -> None:
    """A budget exceeded or not measured, a model that did not improve, a damaged blob: each fails its own check."""
    config, history = played(tmp_path, **changes)  # type: ignore[arg-type]
    assert [check.name for check in checks(history, config, damaged) if not check.passed] == [failed]


def test_unfinished_rounds_and_losses_fail(tmp_path: pathlib.Path) -> None:
    """A run that was given up is no success, whatever its numbers."""
    config, history = played(tmp_path)
    longer = dataclasses.replace(config, rounds=RoundsConfig(count=2, devices=2))
    assert [check.name for check in checks(history, longer, []) if not check.passed] == ["rounds", "improved"]


def test_tables_show_it(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The final tables have each device's numbers, in plain text where there is no terminal."""
    _, history = played(tmp_path)
    screen = Screen()
    screen.table(result_table(history))
    screen.table(evaluation_table(history, "small"))
    text = capsys.readouterr().out
    assert "declined: over-budget, 300 MB" in " ".join(text.split())
    assert "3.000 -> 2.500" in text
    assert "25.0%" in text


def test_curves_are_drawn(tmp_path: pathlib.Path) -> None:
    """The plot is a PNG made by a process of its own, also from a run without a single result."""
    config, history = played(tmp_path)
    empty = dataclasses.replace(history, results=(), evaluations=())
    for name, which in (("full", history), ("empty", empty)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(make_report(which, config, "done", checks(which, config, []))))
        command = [sys.executable, "-m", "coordinator.plots", str(path), str(tmp_path / f"{name}.png")]
        subprocess.run(command, check=True, cwd=ROOT)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
