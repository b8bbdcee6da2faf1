"""The command line says what it needs before it needs it."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from coordinator import cli
from coordinator.cli import main
from coordinator.config import load_config
from coordinator.ledger import Ledger
from edge_sdk.wire.blobs import blob_of
from tests.coordinator.samples import CONFIG

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    """A configuration whose model is not there."""
    path = tmp_path / "coordinator.toml"
    path.write_text(CONFIG)
    return path


def test_a_bare_install_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the coordinator's libraries one line says how to get them, and the status is 2."""
    monkeypatch.setattr(cli, "NEEDED", ("no_such_library",))
    assert main(["serve"]) == 2
    assert "pip install 'fedpeat[coordinator]'" in capsys.readouterr().err


def test_a_wrong_configuration_is_one_line(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt key ends the command with status 2 and its name, before anything is started."""
    config.write_text(CONFIG.replace("steps", "stepps"))
    assert main(["serve", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "unknown key 'training.stepps'" in error
    assert error.count("\n") == 1
    assert not (config.parent / "out").exists()


def test_a_missing_model_is_one_line(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model folder that is not there is said before anything is started or made."""
    assert main(["serve", "--config", str(config)]) == 2
    assert "model.dir" in capsys.readouterr().err
    assert not (config.parent / "out").exists()


def test_a_broker_elsewhere_needs_consent(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unencrypted traffic to another machine is refused with the way to allow it, before anything is made."""
    config.write_text(CONFIG + '\n[broker]\nurl = "mqtt://192.0.2.1:1883"\n')
    assert main(["serve", "--config", str(config)]) == 2
    assert "--insecure" in capsys.readouterr().err
    assert not (config.parent / "out").exists()


def test_status_of_nothing_is_one_line(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was never served has no status."""
    assert main(["status", "--config", str(config)]) == 2
    assert "never served" in capsys.readouterr().err


def test_status_reads_while_the_daemon_writes(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The status needs no lock, and says where the run stands."""
    loaded = load_config(config)
    with Ledger(loaded.out / "ledger.sqlite", loaded.name, loaded.digest()) as ledger:
        ledger.begin(blob_of(b"0"))
        ledger.open_round(1, 1, 2, 2)
        assert main(["status", "--config", str(config)]) == 0
    assert "0 of 3 rounds" in capsys.readouterr().out


def test_the_commands_are_known() -> None:
    """The surface of the command line is a promise: serve, status, version, and the exporter's."""
    run = subprocess.run(
        [sys.executable, "-m", "coordinator.cli", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    for name in ("serve", "status", "version", "export", "inspect"):
        assert name in run.stdout
