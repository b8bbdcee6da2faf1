"""Who may import whom, held by import-linter's contracts and by what a fresh interpreter really loads."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import grimp
import pytest

ROOT = pathlib.Path(__file__).parents[2]
HEAVY = ("onnxruntime", "onnx", "torch", "transformers", "peft", "optimum", "matplotlib")


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


@pytest.mark.parametrize("package", ["edge_sdk", "edge_sdk.wire", "export", "coordinator"])
def test_packages_are_lazy(package: str) -> None:
    """Importing a package loads no heavy library: `import edge_sdk.wire` runs `edge_sdk/__init__.py`, too."""
    assert not loaded_by(f"import {package}") & set(HEAVY)


def test_all_of_wire_is_light() -> None:
    """No module of `edge_sdk.wire` loads the runtime, process inspection or torch."""
    modules = [f"edge_sdk.wire.{path.stem}" for path in (ROOT / "edge_sdk" / "wire").glob("[!_]*.py")]
    assert not loaded_by(f"import {', '.join(modules)}") & {*HEAVY, "psutil"}


def test_wire_stands_alone() -> None:
    """No module of `edge_sdk.wire` imports anything of the rest of `edge_sdk`: the other side gets it whole."""
    graph = grimp.build_graph("edge_sdk", cache_dir=None)
    modules = {"edge_sdk.wire"} | graph.find_descendants("edge_sdk.wire")
    imported = {target for module in modules for target in graph.find_modules_directly_imported_by(module)}
    assert imported <= modules


@pytest.mark.parametrize("daemon", ["edge_sdk.agent", "coordinator.daemon", "coordinator.serve"])
def test_daemons_stay_small(daemon: str) -> None:
    """A process that runs for months loads neither onnxruntime nor torch: other processes train and export."""
    assert not loaded_by(f"import {daemon}") & {"onnxruntime", "torch", "transformers", "peft", "onnx"}


@pytest.mark.parametrize("command", ["edge_sdk.cli", "coordinator.cli", "export.cli"])
def test_command_lines_start_light(command: str) -> None:
    """A command line loads no heavy library before it knows what it is asked for: `--help` answers at once."""
    assert not loaded_by(f"import {command}") & set(HEAVY)
