"""`fedpeat ladder` on a tiny model, in processes as users start it: stopped, begun again, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from coordinator.config import load_config
from coordinator.controller.profile import load_profile
from coordinator.ladder.request import Description, configuration, read_levels, without_levels
from edge_sdk.wire.messages import DeltaCodec
from tests.coordinator.samples import CONFIG
from tests.models import CORPUS, tiny_model

ROOT = pathlib.Path(__file__).parents[2]
LEVELS = """
[[levels]]
name = "int8"
bits = 8
[[levels]]
name = "int8-2layers"
bits = 8
layers = 2
"""
SHORT = ("--tokens", "16", "--steps", "10", "--learning-rate", "1e-2", "--held-out", "8", "--public-rows", "4")
TINY = Description(layers=4, max_tokens=64, labels=("no", "yes"), image="", tokenizer=True, weights_bytes={32: 8, 4: 1})
ASKED = without_levels(
    {
        "name": "ladder",
        "fleet": "ladder",
        "out": "out",
        "model": {"dir": "model", "task": "causal-lm"},
        "rounds": {"count": 1, "devices": 1},
        "training": {"steps": 1},
        "public": {"path": "public"},
    }
)
PATIENCE_S = 280.0
pytestmark = pytest.mark.timeout(900)  # the first test to ask for it waits for the whole ladder, on a busy machine long


@dataclass(frozen=True, slots=True)
class Made:
    """What the command was given, and what it left; `stopped` is what it said when it was stopped half-way."""

    words: tuple[str, ...]
    out: pathlib.Path
    stopped: str
    left: frozenset[str]
    found: Mapping[str, Any]

    def level(self, name: str) -> Mapping[str, Any]:
        """What was measured of a level."""
        found: Mapping[str, Any] = next(level for level in self.found["levels"] if level["name"] == name)
        return found


def ladder(*words: object) -> subprocess.Popen[str]:
    """The command, started."""
    command = [sys.executable, "-m", "coordinator.cli", "ladder", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A ladder of three levels. The command was interrupted while it measured the second, and begun again."""
    folder = tmp_path_factory.mktemp("ladder")
    draw = np.random.default_rng(0)
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(" ".join(draw.choice(CORPUS, 120)), encoding="utf-8")
    (folder / "levels.toml").write_text(LEVELS, encoding="utf-8")
    out = folder / "out"
    model, levels = str(tiny_model("llama", folder / "model")), str(folder / "levels.toml")
    words = (model, "--data", str(folder / "texts"), "--out", str(out), *SHORT, "--levels", levels)
    first = ladder(*words)
    waits_until_s = time.monotonic() + PATIENCE_S
    while not (out / "measured" / "fp32.json").exists() and first.poll() is None and time.monotonic() < waits_until_s:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    stopped = first.communicate(timeout=60)[1]
    assert first.returncode == 130, stopped
    left = frozenset(path.name for path in out.iterdir())
    second = ladder(*words)
    said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, said[1]
    return Made(words, out, stopped, left, json.loads((out / "ladder.json").read_text(encoding="utf-8")))


def test_what_is_stopped_goes_on(made: Made) -> None:
    """Ctrl-C leaves what was measured and nothing that looks like a result; a third time nothing is measured at all."""
    assert made.stopped.endswith("stopped; the same command goes on from here\n")
    assert made.left == {"rows", "split", "artifact", "measured"}
    times = {path: path.stat().st_mtime_ns for path in (made.out / "measured").iterdir()}
    again = ladder(*made.words)
    said, progress = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, progress
    assert "gap closed" in said
    assert {path: path.stat().st_mtime_ns for path in (made.out / "measured").iterdir()} == times
    assert json.loads((made.out / "ladder.json").read_text(encoding="utf-8")) == made.found


def test_levels_are_measured_against_the_full_model(made: Made) -> None:
    """It is put first where it was not asked for, and closes the whole gap; int8 all but all of it."""
    names = [level["name"] for level in made.found["levels"]]
    assert names == ["fp32", "int8", "int8-2layers"]
    assert made.level("fp32")["gap_closed"] == 1
    assert made.level("int8")["gap_closed"] == pytest.approx(1, abs=0.1)
    assert made.found["tuned_loss"] == made.level("fp32")["quality"]["plug_in"] < made.found["zero_shot_loss"]
    fp32 = made.level("fp32")["quality"]
    assert fp32["emulator_before"] == pytest.approx(made.found["zero_shot_loss"], rel=1e-4)
    assert fp32["emulator"] == pytest.approx(fp32["plug_in"], rel=1e-4)
    assert set(made.found["ladder"]) <= set(names)


def test_bytes_and_plans_are_those_of_a_device(made: Made) -> None:
    """Who holds int8 has all of its shorter level but a manifest; no tune was over budget; leaner plans are slower."""
    short = made.level("int8-2layers")
    manifest = made.out / "artifact" / "int8-2layers.manifest"
    assert short["new_bytes"]["int8"] == manifest.stat().st_size < short["new_bytes"]["fp32"]
    assert made.level("int8")["size_bytes"] < made.level("fp32")["size_bytes"]
    for level in made.found["levels"]:
        peaks = [plan["peak_bytes"] for plan in level["plans"]]
        times = [plan["step_ms"] for plan in level["plans"]]
        assert peaks == sorted(peaks)
        assert times == sorted(times, reverse=True)
        assert level["needs_bytes"] == peaks[0]
        assert 0 < level["tune"]["peak_bytes"] <= level["tune"]["budget_bytes"]


def test_no_row_is_in_two_parts(made: Made) -> None:
    """Every row of the data is tuned on, judged by or chosen by; but for equal texts, none of them twice."""
    rows = np.load(made.out / "rows" / "ids.npy")
    parts = {name: np.load(made.out / "split" / name / "ids.npy") for name in ("tune", "held-out", "public")}
    assert (len(parts["held-out"]), len(parts["public"])) == (8, 4)
    together = np.concatenate(list(parts.values()))
    assert sorted(map(tuple, together)) == sorted(map(tuple, rows[np.load(made.out / "rows" / "lengths.npy") >= 2]))


def test_the_levels_are_a_coordinators(made: Made, tmp_path: pathlib.Path) -> None:
    """What is written belongs into a configuration, best first, and can be given to the command again."""
    text = (made.out / "levels.toml").read_text(encoding="utf-8")
    head, _, tail = CONFIG.partition("[[levels]]")
    (tmp_path / "coordinator.toml").write_text(head + text + tail[tail.index("[rounds]") :], encoding="utf-8")
    levels = load_config(tmp_path / "coordinator.toml").levels
    assert [level.name for level in levels] == made.found["ladder"][::-1]
    closed = {level["name"]: level["gap_closed"] for level in made.found["levels"]}
    assert {one.name: one.quality for one in levels} == pytest.approx(
        {one.name: min(max(closed[one.name], 0), 1) for one in levels}, abs=1e-4
    )
    again = configuration(ASKED, TINY, read_levels(made.out / "levels.toml")).levels
    assert set(levels) <= set(again)
    assert (made.out / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_the_ladder_is_a_profile(made: Made) -> None:
    """A policy can be trained on what was measured: sizes and files in common, least peaks, times, qualities."""
    profile = load_profile(made.out / "profile.json")
    found = {level.name: level for level in profile.levels}
    assert list(found) == made.found["ladder"][::-1]
    for name, level in found.items():
        measured = made.level(name)
        assert (level.needs_bytes, level.step_s) == (measured["needs_bytes"], measured["tune"]["step_ms"] / 1e3)
        assert 0 < level.size_bytes < measured["size_bytes"]  # a manifest is no file of a level
        assert 0 < level.upload_bytes[DeltaCodec.INT8] < level.upload_bytes[DeltaCodec.FP32]
    assert profile.curve.first == pytest.approx(made.found["zero_shot_loss"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("absent", "--data", "TEXTS"), "there is no model folder absent"),
        (("MODEL", "--data", "absent"), "there is no data absent"),
        (("MODEL", "--data", "FILE"), "is neither a folder nor a .csv or .jsonl file"),
        (("MODEL", "--data", "TEXTS", "--levels", "absent.toml"), "absent.toml: cannot be read"),
        (("MODEL", "--data", "TEXTS", "--steps", "0"), "training.steps is 0; it must be from 1"),
        (("MODEL", "--data", "TEXTS", "--labels", "no,yes"), "labels are for a classification"),
        (("MODEL", "--data", "TEXTS", "--held-out", "9999"), "so none is left to tune on"),
        (("MODEL", "--data", "TEXTS", "--adapter", "prompt", "--length", "2000"), "adapter.length is 2000"),
        (("MODEL", "--data", "TEXTS", *SHORT, "--adapter", "layers", "--first", "2", "--last", "3"), "the last 3 of 4"),
    ],
)
def test_wrong_input_is_one_line(made: Made, tmp_path: pathlib.Path, words: tuple[str, ...], complaint: str) -> None:
    """Status 2, one line that says what is wrong, and no ladder."""
    model, _, texts, *_ = made.words
    names = {"MODEL": model, "TEXTS": texts, "FILE": str(pathlib.Path(texts, "a.txt"))}
    done = ladder(*(names.get(word, word) for word in words), "--out", tmp_path / "out")
    said = done.communicate(timeout=PATIENCE_S)[1]
    assert done.returncode == 2
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert complaint in errors[0]
    assert not (tmp_path / "out" / "ladder.json").exists()


def test_a_ladder_without_levels_of_ones_own() -> None:
    """Bits, mixes of them that are possible, and depth, from the model's size alone; as large or small as it is."""
    sizes = {32: 538_000_000, 16: 269_000_000, 8: 135_000_000, 4: 75_000_000}
    levels = configuration(ASKED, dataclasses.replace(TINY, layers=30, weights_bytes=sizes), None).levels
    assert {level.bits for level in levels} == {32, 8, 4}
    assert {level.layers for level in levels} == {0, 15, 22}
    assert len({level.tensors_mb for level in levels if level.tensors_mb}) == 3
    assert all(75 < level.tensors_mb < 135 for level in levels if level.tensors_mb)
    small = configuration(ASKED, dataclasses.replace(TINY, layers=1, weights_bytes={**sizes, 4: 130_000_000}), None)
    assert [level.name for level in small.levels] == ["fp32", "int8", "int4"]
