"""Who may import whom, held by import-linter's contracts and by what a fresh interpreter really loads."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import grimp
import pytest

ROOT = pathlib.Path(__file__).parents[2]
HEAVY = {"onnxruntime", "onnx", "onnxscript", "onnx_ir", "torch", "transformers", "peft", "optimum", "matplotlib"}
LIGHT = (
    *("edge_sdk", "edge_sdk.wire", "export", "coordinator"),  # packages: `import a.b` runs `a/__init__.py`, too
    *("edge_sdk.agent", "coordinator.daemon", "coordinator.serve"),  # run for months; other processes train and export
    *("edge_sdk.cli", "coordinator.cli", "export.cli"),  # `--help` answers at once
)


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statement`."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(json.loads(run.stdout))


def test_contracts_hold() -> None:
    """Every import contract of pyproject.toml is kept."""
    program = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"]
    run = subprocess.run(program, check=False, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("module", LIGHT)
def test_heavy_libraries_wait_until_they_are_needed(module: str) -> None:
    """Importing a package, a daemon or a command line loads none of them."""
    assert not loaded_by(f"import {module}") & HEAVY


def test_all_of_wire_is_light() -> None:
    """No module of `edge_sdk.wire` loads the runtime, process inspection or torch."""
    modules = [f"edge_sdk.wire.{path.stem}" for path in (ROOT / "edge_sdk" / "wire").glob("[!_]*.py")]
    assert not loaded_by(f"import {', '.join(modules)}") & (HEAVY | {"psutil"})


def test_wire_stands_alone() -> None:
    """No module of `edge_sdk.wire` imports anything of the rest of `edge_sdk`: the other side gets it whole."""
    graph = grimp.build_graph("edge_sdk", cache_dir=None)
    modules = {"edge_sdk.wire"} | graph.find_descendants("edge_sdk.wire")
    imported = {target for module in modules for target in graph.find_modules_directly_imported_by(module)}
    assert imported <= modules
