"""The comparison behind the aarch64 table finds what it should find, and the engine's part of it runs here."""

from __future__ import annotations

import math
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import board_step
from benchmarks.aarch64 import BOUND, Case, Row, drawn, ending, holds, run_here, worst
from edge_sdk.wire.manifest import decode_manifest
from edge_sdk.wire.tensors import Array, read_tensors, write_tensors

WANTED = {"gradient/a": np.array([1.0, -4.0], np.float32), "gradient/b": np.array([[0.5]], np.float32)}
HELD: Row = {"ended": "ok", "gradient_error": 1e-6, "loss_error": 0.0}


def changed(name: str, value: float) -> dict[str, Array]:
    """WANTED with `value` added to the last number of one tensor."""
    tensor = WANTED[name].copy()
    tensor.flat[-1] += np.float32(value)
    return {**WANTED, name: tensor}


@given(st.sampled_from(sorted(WANTED)), st.floats(1e-3, 1e3))
def test_the_tensor_that_is_off_is_named(name: str, by: float) -> None:
    """A change of one tensor is found there, and its size is counted in that tensor's largest value."""
    found, error = worst(changed(name, by), WANTED, "gradient/")
    assert f"gradient/{found}" == name
    assert error == pytest.approx(by / np.abs(WANTED[name]).max(), rel=1e-3)


def test_nan_is_the_worst_of_all() -> None:
    """A number that is none is not hidden by a large error elsewhere, and no bound lets it pass."""
    name, error = worst(
        {**changed("gradient/a", 9.0), "gradient/b": WANTED["gradient/b"] * np.nan}, WANTED, "gradient/"
    )
    assert name == "b"
    assert math.isnan(error)
    assert not holds({**HELD, "gradient_error": error})


@pytest.mark.parametrize("found", [{}, {"gradient/a": WANTED["gradient/a"]}, {**WANTED, "gradient/c": np.ones(1)}])
def test_other_tensors_are_no_comparison(found: dict[str, Array]) -> None:
    """A tensor too few or too many is refused: less compared would look like less error."""
    with pytest.raises(ValueError, match="not the same"):
        worst(found, WANTED, "gradient/")


def test_a_gradient_of_zeros_proves_nothing() -> None:
    """Where all that is compared with is zero, agreement is refused."""
    dead = {**WANTED, "gradient/b": np.zeros((1, 1), np.float32)}
    with pytest.raises(ValueError, match="gradient/b is zero"):
        worst(dead, dead, "gradient/")


@pytest.mark.parametrize(
    "missed", [{"ended": "SIGILL: no word"}, {"gradient_error": 2 * BOUND}, {"loss_error": 2 * BOUND}]
)
def test_a_run_holds_only_whole(missed: Row) -> None:
    """A run that died, or one error over the bound, is a miss."""
    assert holds(HELD)
    assert not holds({**HELD, **missed})


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV])
def test_a_signal_is_called_by_its_name(number: signal.Signals) -> None:
    """How a real process ended is said by the signal that ended it."""
    program = f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {number:d})"
    assert ending(subprocess.run([sys.executable, "-c", program], check=False).returncode) == number.name


def test_other_endings() -> None:
    """An exit status is said, and success."""
    assert (ending(0), ending(3)) == ("ok", "exit 3")


def test_the_engine_gives_every_gradient_and_depends_on_what_is_given(
    tiny_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """What runs on a board runs here: the same bytes give the same gradients, others do not, and the steps learn."""
    path = tiny_artifact / "fp32.manifest"
    manifest = decode_manifest(path.read_bytes())
    tensors = drawn(manifest)
    write_tensors(tmp_path / "one.given", tensors)
    tensors["batch/ids"] = np.roll(tensors["batch/ids"], 1, axis=1)
    write_tensors(tmp_path / "other.given", tensors)
    one, other = (run_here(Case("llama", "fp32", path, tmp_path / f"{name}.given")) for name in ("one", "other"))
    assert board_step.below("gradient/", dict(one.tensors)).keys() == manifest.trained_shapes().keys()
    again = run_here(Case("llama", "fp32", path, tmp_path / "one.given"))
    assert worst(again.tensors, one.tensors, "gradient/")[1] == 0
    assert worst(other.tensors, one.tensors, "gradient/")[1] > BOUND
    assert one.said["losses"] == sorted(one.said["losses"], reverse=True)
    given_adapter = board_step.below("adapter/", read_tensors(tmp_path / "one.given"))
    moved = board_step.below("adapter/", dict(one.tensors))
    assert all(not np.array_equal(moved[name], given_adapter[name]) for name in manifest.trained_shapes())
