"""CAFF's table: every method reads as a configuration, and what is compared is what was paid for."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from benchmarks import caff
from benchmarks.caff import AXES, METHODS, QUICK, SCENES, Given, Level, Need, Outcome, Played, Taken
from benchmarks.demo import write_toml
from benchmarks.fleet import Point
from coordinator.config import load_config
from coordinator.policy.settings import PolicyName

POINTS = tuple(Point(k, 1000 * k, 500 * k, 0.7 - k / 100, 0.5 + k / 10) for k in range(4))
LAYERS = Outcome("scarce", "layers", 0, (Level("last2", 200, 4, 190, 10.0),), POINTS, (0.0, 2.0, 4.0, 6.0))
LORA = dataclasses.replace(LAYERS, method="lora", seconds=(0.0, 1.0, 2.0, 3.0))
NOBODY = dataclasses.replace(LAYERS, method="lora-ranks", levels=(), points=(), seconds=())


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_configuration(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, method: str, scene: str
) -> None:
    """The coordinator reads it, and the levels that budgets are of are there."""
    monkeypatch.setattr("benchmarks.vision.vit", lambda _side: tmp_path)
    write_toml(tmp_path / "c.toml", {**caff.table(scene, method, 0, QUICK), "fleet": "f", "out": "out"})
    config = load_config(tmp_path / "c.toml")
    assert config.policy.name is PolicyName(METHODS[method].policy)
    names = {level.name for level in config.levels}
    assert method != "layers" or {f"last{blocks}" for blocks in SCENES[scene] if blocks} <= names


def test_a_round_takes_its_slowest_device_s_time(tmp_path: pathlib.Path) -> None:
    """Of all its steps; levels count how many had them."""
    quick, slow = Given(tmp_path / "last1.manifest", 100), Given(tmp_path / "last2.manifest", 200)
    played = Played("heterogeneous", "layers", 0, ((quick, slow), (quick, quick), (quick, slow)), POINTS)
    found = caff.priced(played, {quick: Taken(90, 10.0), slow: Taken(190, 25.0)}, steps=8)
    assert found.seconds == pytest.approx((0.0, 0.2, 0.28, 0.48))
    assert found.levels == (Level("last1", 100, 4, 90, 10.0), Level("last2", 200, 2, 190, 25.0))


def test_accuracy_is_of_what_was_there_in_time() -> None:
    """The last adapter that cost no more than the limit; none where even the first cost more."""
    time = AXES["time"]
    assert [LAYERS.within(time, limit) for limit in (-1.0, 0.0, 3.0, 6.0)] == [None, 0.5, 0.6, 0.8]
    assert LAYERS.within(AXES["bytes"], 3000.0) == 0.7


def test_equal_time_is_the_fastest_method_s(tmp_path: pathlib.Path) -> None:
    """Whoever needs longer is asked what it had by then; a method that fits nobody has a line that says so."""
    found = caff.table_of([LAYERS, LORA, NOBODY])
    assert list(found.columns[2].cells) == ["last2", "last2", "fits nobody"]
    assert list(found.columns[8].cells) == ["0.600", "0.800", "-"]
    caff.draw([LAYERS, LORA, NOBODY], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_seeds_are_one_line() -> None:
    """Their mean and deviation; budgets and peaks from the least to the most."""
    more = (Point(3, 3000, 1500, 0.6, 1.0),)
    other = dataclasses.replace(LORA, seed=1, points=more, seconds=(3.0,), levels=(Level("last2", 2 * 10**6, 4, 0, 1),))
    found = caff.table_of([LORA, other])
    assert [list(found.columns[k].cells)[1] for k in (3, 7)] == ["0-2", "0.900 ± 0.141"]


def test_needs_are_in_megabytes() -> None:
    """A line a level: the sum, and what the leanest and the fastest plan were measured to take."""
    need = Need(28, "lora", "last12", 155_146, 120_000_000, Taken(77_000_000, 9.0), Taken(179_000_000, 5.0))
    cells = [next(iter(column.cells)) for column in caff.table_of_needs([need]).columns]
    assert cells == ["28 x 28", "lora", "last12", "155,146", "120", "77", "179"]


def test_complaints_name_what_is_wrong() -> None:
    """A peak above its budget, and a scene in which nobody learns."""
    assert caff.complaints([LAYERS, LORA, NOBODY]) == []
    over = dataclasses.replace(LAYERS, levels=(Level("last2", 200, 4, 201, 10.0),))
    assert caff.complaints([over]) == ["scarce, layers: last2 took 201 of 200 bytes"]
    worse = dataclasses.replace(LAYERS, points=POINTS[::-1])
    assert caff.complaints([worse]) == ["scarce: no method learns"]
