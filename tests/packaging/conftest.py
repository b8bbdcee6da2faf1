"""The wheel, and a virtual environment that holds nothing but what a bare `pip install` of it brings."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import venv
from dataclasses import dataclass

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Bare:
    """A bare install: its interpreter's folder of commands, and the names of the distributions in it."""

    commands: pathlib.Path
    distributions: frozenset[str]

    def run(
        self, command: str, *arguments: str, cwd: pathlib.Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its commands in the folder `cwd`, so that nothing of the checkout is importable."""
        return subprocess.run(
            [str(self.commands / command), *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=os.environ | environment,
        )


def pip(python: pathlib.Path, *arguments: str) -> str:
    """Run pip of that interpreter; its output."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip(pathlib.Path(sys.executable), "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), ".")
    (built,) = folder.glob("fedpeat-*.whl")
    return built


@pytest.fixture(scope="session")
def bare(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """A fresh virtual environment with the wheel, and then with the test runner, which is not counted."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip(python, "install", "--prefer-binary", str(wheel))
    found = json.loads(pip(python, "list", "--format=json"))
    pip(python, "install", "pytest>=9", "pytest-timeout>=2.4", "hypothesis>=6.140")
    return Bare(folder / "bin", frozenset(entry["name"].lower() for entry in found))
