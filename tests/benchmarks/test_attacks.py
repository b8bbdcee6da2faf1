"""Liars in a real fleet: what they send is what the attack says, and what becomes of it; and what a page says of it."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import statistics
from typing import Any

import numpy as np
import pytest

from benchmarks import attacks
from benchmarks.attacks import Defence, Outcome, complaints, flip_labels, table, text_table
from benchmarks.demo import write_toml
from benchmarks.fleet import Member, Point, Run, play
from benchmarks.liars import BOOST, Attack, Besieged, a_little, lie
from benchmarks.studies import write_reviews
from coordinator import example_privacy
from coordinator.config import load_config
from coordinator.history import read_history
from coordinator.places import ledger_path
from coordinator.privacy import epsilon
from coordinator.quarantine import Quarantine
from edge_sdk.config import DataConfig, DataKind
from edge_sdk.data import write_image_folder
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.messages import RefusalReason
from edge_sdk.wire.tensors import read_tensors
from tests.coordinator.samples import make_delta

SHAPES = {"a": (3, 4), "b": (5,)}
HONEST = make_delta(SHAPES)


def played(folder: pathlib.Path, tiny_vision: pathlib.Path, attack: Attack, **changes: Any) -> Run:
    """Five devices, of which `d0` lies, in a few rounds of one step."""
    homes = [folder / f"d{k}" for k in range(5)]
    for k, home in enumerate(homes):
        labels = np.arange(12) % 3
        pixels = np.random.default_rng(k).integers(0, 80, (12, 1, 9, 9)) + 80 * labels[:, None, None, None]
        write_image_folder(home, np.minimum(pixels, 255), labels)
    configuration = {
        "name": "test",
        "model": {"dir": "model", "task": "image-classification", "labels": ["bad", "so-so", "good"]},
        "adapter": {"rank": 2, "alpha": 16},
        "levels": [{"name": "fp32"}],
        "rounds": {"count": 4, "devices": 5, "min_devices": 5, "quorum": 3},
        "training": {"steps": 1, "batch": 4, "learning_rate": 1e-2},
        "aggregation": {"rule": "freeze-a"},
    }
    engine = Besieged(tiny_vision, attack, frozenset({"d0"}), 5)
    members = [Member(home.name, DataConfig(kind=DataKind.IMAGE_ARRAYS, path=home)) for home in homes]
    try:
        return play({**configuration, **changes}, members, engine, folder)
    finally:
        engine.close()


def test_nan_is_refused_and_its_sender_sits_out(tmp_path: pathlib.Path, tiny_vision: pathlib.Path) -> None:
    """Two strikes, then no task; nothing of it is in any adapter."""
    run = played(tmp_path, tiny_vision, Attack.NAN, checks={"strikes": 2, "quarantine_rounds": 1})
    refused = [(a.device, a.round, a.reason) for a in run.history.answers if a.kind == "refused"]
    assert refused == [("d0", k, RefusalReason.NOT_FINITE.value) for k in (1, 2, 4)]
    quarantine = Quarantine.of(run.config.checks, ((device, round_) for device, round_, _ in refused))
    assert [(spell.first, spell.last) for spell in quarantine.spells()] == [(2, 3)]
    assert {row.device for row in run.history.results} == {"d1", "d2", "d3", "d4"}
    assert all(np.isfinite(a).all() for a in read_tensors(run.adapter(4)).values())


@pytest.mark.parametrize("over_norm", ["clip", "refuse"])
def test_a_boosted_delta_is_held_to_the_others(
    tmp_path: pathlib.Path, tiny_vision: pathlib.Path, over_norm: str
) -> None:
    """From the second round on it is refused where that was asked for; in either case it moves no adapter far."""
    checks = {"norm_factor": 2, "over_norm": over_norm, "strikes": 0}
    run = played(tmp_path, tiny_vision, Attack.SIGN_FLIP, checks=checks)
    refused = [(a.device, a.round, a.reason) for a in run.history.answers if a.kind == "refused"]
    late = [("d0", k, RefusalReason.OVER_NORM.value) for k in (2, 3, 4)]
    assert refused == (late if over_norm == "refuse" else [])
    sizes = {row.device: row.size for row in run.used(1)}
    assert sizes["d0"] == pytest.approx(BOOST * np.median([sizes[f"d{k}"] for k in range(1, 5)]), rel=0.5)
    before, after = read_tensors(run.adapter(0)), read_tensors(run.adapter(1))
    moved = Delta({name: after[name] - before[name] for name in after if not name.endswith("lora_A")})
    assert moved.size() <= (4 * max(sizes[f"d{k}"] for k in range(1, 5)) + 2 * statistics.median(sizes.values())) / 5


def test_an_estimator_serves_a_fleet(tmp_path: pathlib.Path, tiny_vision: pathlib.Path) -> None:
    """With one liar of five the median moves less than any honest device's largest number."""
    robust = {"rule": "freeze-a", "estimator": "median", "byzantine": 1}
    run = played(tmp_path, tiny_vision, Attack.NOISE, aggregation=robust, checks={"norm_factor": 0})
    assert len(run.used(1)) == 5
    before, after = read_tensors(run.adapter(0)), read_tensors(run.adapter(1))
    name = next(name for name in after if name.endswith("lora_B"))
    assert 0 < np.abs(after[name] - before[name]).max() <= 1.1e-2, "AdamW's first step is its rate"


def test_a_private_fleet_counts_what_it_spends(tmp_path: pathlib.Path, tiny_vision: pathlib.Path) -> None:
    """Every version has its row, the bound moves, and everything that may train has noise."""
    rounds = {"count": 3, "devices": 5, "min_devices": 5, "participants": 2, "quorum": 2}
    table_ = {"noise_multiplier": 1.0, "clip_norm": 0.1, "delta": 1e-5, "quantile": 0.5, "count_noise": 2.0}
    run = played(tmp_path, tiny_vision, Attack.NONE, rounds=rounds, privacy=table_)
    rows = read_history(ledger_path(run.config)).spent
    assert [(row.round, row.present, row.drawn, row.delivered) for row in rows] == [(k, 5, 2, 2) for k in (1, 2, 3)]
    assert rows[0].clip_norm == 0.1
    assert [row.clip_norm for row in rows[1:]] == [row.next_clip_norm for row in rows[:-1]]
    assert epsilon(rows, 1e-5) > epsilon(rows[:1], 1e-5) > 0
    before, after = read_tensors(run.adapter(0)), read_tensors(run.adapter(1))
    assert all(np.all(after[n] != before[n]) == (not n.endswith("lora_A")) for n in after)


# ---- the attacks


def test_each_lie_is_what_it_says() -> None:
    """Backwards, ten times as long; as long in any direction; not a number; and learned from a lie."""
    random = np.random.default_rng(0)
    flipped = lie(Attack.SIGN_FLIP, HONEST, random)
    assert all(np.allclose(array, -BOOST * HONEST.tensors[name]) for name, array in flipped.tensors.items())
    large = Delta({"a": np.full((100, 100), 0.5, np.float32)})
    assert lie(Attack.NOISE, large, random).size() == pytest.approx(BOOST * 0.5, rel=0.05)
    assert all(np.isnan(array).all() for array in lie(Attack.NAN, HONEST, random).tensors.values())
    assert lie(Attack.LABEL_FLIP, HONEST, random) is HONEST


def test_a_little_is_the_papers() -> None:
    """Of nine devices with two liars: 4 of 7 honest ones are expected nearer, z = 0.18 standard deviations."""
    shadows = [make_delta(SHAPES, k) for k in range(5)]
    found = a_little(shadows, 9, 2)
    z = statistics.NormalDist().inv_cdf(4 / 7)
    for name, array in found.tensors.items():
        stack = np.stack([shadow.tensors[name] for shadow in shadows])
        np.testing.assert_allclose(array, stack.mean(axis=0) - z * stack.std(axis=0), rtol=1e-5)


def test_labels_are_flipped(tmp_path: pathlib.Path) -> None:
    """Every one, and no text."""
    write_reviews(tmp_path / "d.csv", [("good", "positive"), ("bad, very", "negative")])
    flip_labels(tmp_path / "d.csv")
    with (tmp_path / "d.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["text", "label"], ["good", "negative"], ["bad, very", "positive"]]


def test_a_fleet_hides_its_examples(tmp_path: pathlib.Path, tiny_vision: pathlib.Path) -> None:
    """By configuration alone, and beside a robust rule: every device says of how many rows it sampled, and no loss;
    what that promises is counted, and more tasks cost more.
    """
    robust = {"rule": "freeze-a", "estimator": "median", "byzantine": 1}
    table_ = {"where": "device", "noise_multiplier": 1.0, "clip_norm": 0.5, "delta": 1e-5}
    run = played(tmp_path, tiny_vision, Attack.NONE, aggregation=robust, privacy=table_)
    reports = [row.report for row in run.history.results]
    assert all(report.sampled_rows > 0 and report.loss_before == report.loss_after == 0 for report in reports)
    found = example_privacy.standing(run.config, run.history)
    assert found.epsilon is not None
    assert 0 < found.epsilon < 100
    first = dataclasses.replace(run.history, tasks=run.history.tasks[:5])
    assert (example_privacy.standing(run.config, first).epsilon or 0) < found.epsilon
    before, after = read_tensors(run.adapter(0)), read_tensors(run.adapter(1))
    assert any(np.any(after[name] != before[name]) for name in after)


# ---- what is made of them


@pytest.mark.parametrize("defence", Defence)
def test_a_defence_is_a_configuration(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, defence: Defence
) -> None:
    """The coordinator reads it."""
    monkeypatch.setattr("benchmarks.assets.minilm", lambda: tmp_path)
    configuration = table(Attack.NONE, defence, 0, attacks.QUICK)
    write_toml(tmp_path / "c.toml", {**configuration, "fleet": "f", "out": "out"})
    load_config(tmp_path / "c.toml")


def outcome(attack: Attack, defence: Defence, loss: float, refused: int = 0) -> Outcome:
    """A run that began at 0.7 and ended at this loss."""
    points = (Point(0, 0, 0, 0.7, 0.5), Point(4, 0, 0, loss, 0.6))
    return Outcome(attack.value, defence.value, 0, 36, refused, 0, 1.0, points)


def test_the_check_wants_defences_that_hold_and_a_control_that_does_not() -> None:
    """Each claim by itself, also as a mean of seeds; and the table has every run."""
    good = [
        outcome(Attack.NONE, Defence.MEAN, 0.6),
        outcome(Attack.NAN, Defence.MEAN, 0.6, refused=3),
        outcome(Attack.SIGN_FLIP, Defence.MEAN, 5.0),
        outcome(Attack.SIGN_FLIP, Defence.MEDIAN, 0.65),
        outcome(Attack.NOISE, Defence.MEDIAN, 0.65),
    ]
    assert complaints(good) == []
    for k, bad in enumerate([0.701, 0.8, 1.3, 0.74, 0.74]):
        last = dataclasses.replace(good[k].points[1], loss=bad)
        worse = dataclasses.replace(good[k], points=(good[k].points[0], last))
        assert len(complaints([*good[:k], worse, *good[k + 1 :]])) == 1
    idle = outcome(Attack.NONE, Defence.MULTI_KRUM, 0.701)
    assert complaints([idle]) == []
    assert len(complaints([outcome(Attack.LITTLE, Defence.MULTI_KRUM, 0.74)])) == 1
    assert len(complaints([outcome(Attack.NAN, Defence.MEAN, 0.6)])) == 1
    text = text_table(good)
    assert "| sign-flip | 5.0000 (0.600) | 0.6500 (0.600) |" in text
    assert "| noise |  | 0.6500 (0.600) |" in text


def test_runs_that_were_not_played_are_not_drawn(tmp_path: pathlib.Path) -> None:
    """NaN is played with the control alone: the plot and the page are made all the same."""
    runs = [outcome(Attack.NONE, Defence.MEDIAN, 0.6), outcome(Attack.NAN, Defence.MEAN, 0.6, refused=3)]
    attacks.draw(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert "3 deltas refused in 1 runs" in attacks.page(runs, attacks.QUICK, "attacks-quick")
