"""What README promises is run: its ten lines, its configurations, its commands."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from coordinator.config import load_config as load_coordinator
from edge_sdk.config import load_config as load_device
from tests.models import CORPUS

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_ten_lines_train_an_adapter(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The library example, word for word, trains on texts and leaves an adapter."""
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 10
    shutil.copytree(tiny_artifact, tmp_path / "artifact")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text(" ".join(CORPUS) * 20, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 21
    assert (tmp_path / "adapter.safetensors").is_file()


def test_configurations_are_read(tmp_path: pathlib.Path) -> None:
    """Both configurations load as they stand, the coordinator's with the table that it may have besides."""
    coordinator, participant, device = blocks("toml")
    (tmp_path / "coordinator.toml").write_text(coordinator + participant, encoding="utf-8")
    (tmp_path / "device.toml").write_text(device, encoding="utf-8")
    config = load_coordinator(tmp_path / "coordinator.toml")
    assert config.levels[0].name == "fp32"
    assert config.participant is not None
    assert load_device(tmp_path / "device.toml").budget_bytes == 256_000_000


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`?(fedpeat(?:-edge)? [a-z-]+)", README))))
def test_commands_exist(command: str) -> None:
    """Every command that README names has a help page."""
    program, *arguments = shlex.split(command)
    script = pathlib.Path(sys.executable).with_name(program)
    done = subprocess.run([str(script), *arguments, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
