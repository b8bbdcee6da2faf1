"""FedPEFT's table: devices that share nothing, kinds that exist, and a check that lets nothing pass which it names."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from benchmarks import fedpeft
from benchmarks.demo import write_toml
from benchmarks.fedpeft import FULL, KINDS, QUICK, Effort, Outcome, complaints, deal, draw, kept, main, table, table_of
from benchmarks.fleet import Point
from benchmarks.vision import DataSet, Pictures
from coordinator.config import Rule, load_config
from edge_sdk.data import map_image_folder

PICTURES = Pictures(
    np.arange(3000, dtype=np.uint8).repeat(4).reshape(3000, 1, 2, 2), np.arange(3000, dtype=np.int64) % 3
)
DATA = DataSet("fabric", ("a", "b", "c"), PICTURES, PICTURES[:10])
GOOD = Outcome("fabric", "bias", 0, 1000, 4050, 10.0, (Point(0, 0, 0, 1.1, 0.3), Point(3, 2_000_000, 90_000, 0.9, 0.6)))


def test_devices_share_nothing(tmp_path: pathlib.Path) -> None:
    """Each image that was drawn for training is on one device, with its label."""
    members = deal(DATA, 1, dataclasses.replace(QUICK, train=2000), tmp_path)
    assert len(members) == 64
    labels = [map_image_folder(member.data.path)[1] for member in members]
    assert sum(map(len, labels)) == 2000
    expected = np.bincount(PICTURES.some(2000, 1).labels)
    assert np.array_equal(np.bincount(np.concatenate(labels)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_a_configuration(tmp_path: pathlib.Path, kind: str) -> None:
    """The coordinator reads it; 8 of 64 devices take part in a round."""
    model = {"dir": "model", "task": "image-classification", "labels": ["a", "b"]}
    write_toml(tmp_path / "c.toml", {**table(model, kind, 0, FULL), "fleet": "f", "out": "out"})
    config = load_config(tmp_path / "c.toml")
    assert (config.rounds.devices, config.rounds.participants) == (64, 8)
    assert config.aggregation.rule is (Rule.LORA_SVD if kind == "lora" else Rule.MEAN)


def test_complaints_name_what_is_wrong() -> None:
    """Nothing of a good run; of one that learns nothing or sends too much, its name and the numbers."""
    assert complaints([GOOD]) == []
    worse = dataclasses.replace(GOOD, kind="head", points=GOOD.points[::-1])
    assert complaints([GOOD, worse]) == ["fabric, head: accuracy changed by -0.300"]
    larger = dataclasses.replace(GOOD, delta_bytes=4300)
    assert complaints([larger]) == ["fabric, bias: a delta has 4300 bytes, its numbers 4000"]


def test_seeds_are_one_line(tmp_path: pathlib.Path) -> None:
    """Their mean and deviation, in table and plot."""
    other = dataclasses.replace(
        GOOD, seed=1, points=(GOOD.points[0], dataclasses.replace(GOOD.points[1], accuracy=0.8))
    )
    outcomes = [GOOD, other, dataclasses.replace(GOOD, kind="head")]
    found = table_of(outcomes)
    assert found.row_count == 2
    assert list(found.columns[6].cells) == ["0.700 ± 0.141", "0.600"]
    draw(outcomes, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_unknown_kind_ends_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """And the kinds there are."""
    with pytest.raises(SystemExit, match="2"):
        main(["--kinds", "magic"])
    assert "no kind is called magic; there are full, head" in capsys.readouterr().err


def test_a_run_that_is_over_is_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is played once, and read as it was; another seed's is another run."""
    played: list[int] = []

    def play(_data: DataSet, _kind: str, seed: int, _effort: Effort) -> Outcome:
        played.append(seed)
        return dataclasses.replace(GOOD, seed=seed)

    monkeypatch.setattr(fedpeft, "play", play)
    monkeypatch.setattr(fedpeft, "cache_folder", lambda: tmp_path)
    seeds = (0, 0, 1, 0)
    found = [kept(DATA, "bias", seed, QUICK) for seed in seeds]
    assert found == [dataclasses.replace(GOOD, seed=seed) for seed in seeds]
    assert played == [0, 1]


def test_a_seed_that_is_not_played_ends_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """And the seeds there are."""
    with pytest.raises(SystemExit, match="2"):
        main(["--seeds", "0,7"])
    assert "there is no seed 7; there are 0, 1, 2" in capsys.readouterr().err
