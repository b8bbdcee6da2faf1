"""A version of onnxruntime is held to the newest's gradients."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

import numpy as np
import pytest

from benchmarks.runtime_step import PLANS
from benchmarks.runtimes import BOUNDS, NEWEST, VERSIONS, differences, held, requirements


def test_every_version_is_one_that_a_device_may_have() -> None:
    """From the oldest that pyproject.toml allows to below its upper bound, each minor version once."""
    (declared,) = (text for text in importlib.metadata.requires("fedpeat") or () if text.startswith("onnxruntime"))
    oldest, bound = re.search(r">=([\d.]+)", declared), re.search(r"<([\d.]+)", declared)
    assert oldest is not None
    assert bound is not None
    minors = [int(version.split(".")[1]) for version in VERSIONS]
    assert VERSIONS[0] == oldest[1]
    assert minors == list(range(minors[0], int(bound[1].split(".")[1])))
    assert not {version for version in VERSIONS if f"!={version}" in declared}


def test_an_environment_has_one_onnxruntime() -> None:
    """The one that is asked for, and everything else in our own version."""
    first, *others = requirements(NEWEST)
    assert first == f"onnxruntime=={NEWEST}"
    assert all("==" in other and not other.startswith("onnxruntime") for other in others)


def test_a_difference_is_relative_to_the_exact_norm() -> None:
    """Nothing for equal gradients, whatever their size."""
    exact = np.array([3.0, 4.0])
    found = dict.fromkeys(PLANS, exact) | {"kept-16": exact * 1.01}
    assert differences(found, exact) == pytest.approx({"recomputing": 0, "kept-32": 0, "kept-16": 0.01})


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_bounds_hold_up_to_themselves(factor: float) -> None:
    """Above one of them, or where nothing was loaded, a version is refused."""
    plans: dict[str, Any] = {kind: {"gradient_difference": bound} for kind, bound in BOUNDS.items()}
    plans["kept-16"] = {"gradient_difference": BOUNDS["kept-16"] * factor}
    assert held({"plans": plans}) == (factor == 1.0)
    assert not held({"failed": "ended with -4"})
