"""What `pip install fedpeat` gives a device: little, and enough to train."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil
import sys
import zipfile

import pytest

from tests.packaging.conftest import ROOT, Bare

COORDINATOR_ONLY = ("torch", "onnx", "onnxscript", "transformers", "peft", "optimum", "rich", "matplotlib", "amqtt")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_wheel_holds_the_three_packages(wheel: pathlib.Path) -> None:
    """Tests and benchmarks are never shipped; types are."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edge_sdk", "export", "coordinator"}
    assert {"edge_sdk/py.typed", "export/py.typed", "coordinator/py.typed"} <= set(names)


def test_bare_install_is_light(bare: Bare) -> None:
    """A bare install brings the device's five libraries, and none of what only the coordinator needs."""
    assert {"numpy", "onnxruntime", "paho-mqtt", "msgpack", "psutil", "cryptography"} <= bare.distributions
    assert not bare.distributions & set(COORDINATOR_ONLY)


@pytest.mark.parametrize("module", COORDINATOR_ONLY)
def test_bare_install_cannot_import_the_rest(bare: Bare, tmp_path: pathlib.Path, module: str) -> None:
    """Nothing vendors a heavy library under its own name."""
    run = bare.run("python", "-c", f"import {module}", cwd=tmp_path)
    assert run.returncode == 1
    assert f"No module named '{module}'" in run.stderr


def test_coordinator_command_says_what_to_install(bare: Bare, tmp_path: pathlib.Path) -> None:
    """`fedpeat` on a bare install prints one line that names the extra, and ends with 2."""
    run = bare.run("fedpeat", "serve", cwd=tmp_path)
    assert run.returncode == 2
    assert "fedpeat[coordinator]" in run.stderr
    assert "Traceback" not in run.stderr


def test_edge_command_works(bare: Bare, tmp_path: pathlib.Path) -> None:
    """`fedpeat-edge --version` prints the distribution's version."""
    run = bare.run("fedpeat-edge", "--version", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip().endswith("0.1.0")


def test_bare_install_trains_a_step(bare: Bare, tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """`fedpeat-edge probe` trains real steps from an artifact made elsewhere, and prints what they took."""
    manifest = next(tiny_artifact.glob("*.manifest"))
    shape = ("--tokens", "16", "--batch", "1", "--steps", "2")
    run = bare.run("fedpeat-edge", "probe", str(manifest), *shape, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout)
    assert measured["peak_bytes"] > 10_000_000
    assert measured["step_ms"] > 0


def test_device_tests_pass_bare(
    bare: Bare,
    tiny_artifact: pathlib.Path,
    tiny_classifier: pathlib.Path,
    tiny_vision: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    """The device's own tests pass with the wheel alone: from an artifact made elsewhere to a trained adapter."""
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    run = bare.run(
        "python",
        *("-m", "pytest", "-m", "edge_only", "tests/edge_sdk", "-p", "no:cacheprovider", "-q"),
        cwd=tmp_path,
        FEDPEAT_TINY_ARTIFACT=str(tiny_artifact),
        FEDPEAT_TINY_CLASSIFIER=str(tiny_classifier),
        FEDPEAT_TINY_VISION=str(tiny_vision),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_this_suite_is_not_fooled() -> None:
    """The checkout's own environment has what the bare one must lack; else the tests above would prove nothing."""
    assert sys.prefix != sys.base_prefix
    assert all(importlib.util.find_spec(module) for module in COORDINATOR_ONLY)
