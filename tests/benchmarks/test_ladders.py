"""Ladders for experiments: measured once, and read from then on."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from benchmarks.ladders import Subject, done, ladder, shortened
from export.cache import cache_folder
from tests.models import CORPUS, tiny_model

pytestmark = pytest.mark.timeout(600)
INT8 = [{"name": "int8", "bits": 8}]


@pytest.fixture
def subject(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A tiny model and a text, and a cache folder of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    words = np.random.default_rng(0).choice(CORPUS, 120)
    (tmp_path / "texts" / "a.txt").write_text(" ".join(words), encoding="utf-8")
    return Subject(
        name="tiny",
        title="a tiny Llama on words",
        model={"dir": str(tiny_model("llama", tmp_path / "model")), "task": "causal-lm"},
        adapter={"kind": "lora", "rank": 2, "alpha": 4},
        training={"steps": 10, "batch": 1, "tokens": 16, "learning_rate": 1e-2},
        data=tmp_path / "texts",
        held_out=8,
        public=4,
        layers=4,
        megabytes={8: 1.0, 4: 0.5},
        width=32,
        neurons=64,
        factored=("up_proj",),
    )


def test_a_ladder_is_measured_once(subject: Subject) -> None:
    """What was measured is read; with other levels, seeds or settings it is another ladder; its gigabytes are gone."""
    assert done(subject, [], 0, "test") is None
    found = ladder(subject, [], 0, "test")
    assert [level["name"] for level in found["levels"]] == ["fp32"]
    (folder,) = (cache_folder() / "ladders").iterdir()
    assert not (folder / "artifact").exists()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert ladder(subject, [], 0, "test") == found == done(subject, [], 0, "test")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    assert done(subject, INT8, 0, "test") is None
    assert done(subject, [], 1, "test") is None
    assert done(dataclasses.replace(subject, public=5), [], 0, "test") is None


def test_a_shortened_subject_is_another(subject: Subject) -> None:
    """In its steps and held-out rows, and in nothing else."""
    short = shortened(subject, 3, 2)
    assert (short.training["steps"], short.held_out) == (3, 2)
    assert shortened(short, 10, 8) == subject
