"""Codecs on a real model: every one is a configuration, and the check asks of int8 what was promised."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from benchmarks.codecs import RealOutcome, complaints, real_table
from benchmarks.demo import write_toml
from benchmarks.fleet import Point
from coordinator.config import load_config
from edge_sdk.wire.messages import DeltaCodec

EXACT = RealOutcome("fp32", 0, 1000, (Point(0, 0, 0, 0.7, 0.5), Point(8, 0, 0, 0.5, 0.8)))
INT8 = dataclasses.replace(EXACT, codec="int8", delta_bytes=270)


def ending_at(one: RealOutcome, loss: float) -> RealOutcome:
    """The run with another loss after its last round."""
    return dataclasses.replace(one, points=(one.points[0], dataclasses.replace(one.points[1], loss=loss)))


@pytest.mark.parametrize("how", DeltaCodec)
def test_a_codec_is_a_configuration(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, how: DeltaCodec) -> None:
    """The coordinator reads it, those that need residuals among them."""
    monkeypatch.setattr("benchmarks.assets.minilm", lambda: tmp_path)
    write_toml(tmp_path / "c.toml", {**real_table(how, 0), "fleet": "f", "out": "out"})
    assert load_config(tmp_path / "c.toml").training.delta_codec is how


def test_int8_has_to_be_as_good_as_fp32_and_small() -> None:
    """On average over the seeds: within 1 % of a loss that fell, at no more than 27 % of the bytes."""
    assert complaints([EXACT, INT8]) == []
    assert complaints([EXACT, ending_at(INT8, 0.504), EXACT, ending_at(INT8, 0.505)]) == []
    assert complaints([EXACT, ending_at(INT8, 0.506)]) == ["int8 is more than 1 % above fp32's loss"]
    large = dataclasses.replace(INT8, delta_bytes=271)
    assert complaints([EXACT, large]) == ["int8 takes more than 27 % of fp32's bytes"]
    idle = [ending_at(EXACT, 0.67), ending_at(INT8, 0.67)]
    assert complaints(idle) == ["fp32 learns too little to tell"]
