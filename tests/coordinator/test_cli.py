"""The command line says what it needs before it needs it."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys

import pytest

from coordinator import cli
from coordinator.cli import main
from coordinator.config import load_config
from coordinator.errors import ConfigError
from coordinator.ledger import Ledger
from coordinator.places import trust_folder
from coordinator.registry import Enrolment, Registry
from coordinator.serve import check_enrolment
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.keys import Signer, fingerprint
from edge_sdk.wire.tokens import read_token
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
    for name in ("serve", "status", "devices", "version", "export", "inspect"):
        assert name in run.stdout


def test_devices_are_invited_approved_and_revoked(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands that an operator has, also while a coordinator runs: each prints what is so afterwards."""
    folder = trust_folder(load_config(config))

    def said(*arguments: str) -> list[str]:
        assert main(["devices", "--config", str(config), *arguments]) == 0
        return capsys.readouterr().out.split()

    with Registry(folder) as running:
        invitation = read_token(said("invite", "pi-1")[0])
        assert invitation.coordinator == running.signer.public
        assert said("list") == ["pi-1", "invited"]
        key = Signer(bytes(32)).public
        assert running.admit("pi-1", key, Enrolment.TOKEN, invitation.key).unwelcome is None
        assert said("list") == ["pi-1", "enrolled", fingerprint(key)]
        assert said("revoke", "pi-1") == ["pi-1", "revoked", fingerprint(key)]
        assert running.changed()
        assert said("approve", "pi-1") == ["pi-1", "enrolled", fingerprint(key)]


@pytest.mark.parametrize("command", [["approve", "pi"], ["revoke", "pi"], ["invite", "no/name"]])
def test_a_device_that_cannot_be_meant_is_one_line(
    config: pathlib.Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is not known, or is none: status 2."""
    assert main(["devices", "--config", str(config), *command]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_open_enrolment_stays_on_this_machine(config: pathlib.Path) -> None:
    """The first key that comes is taken on loopback; elsewhere only with consent, or tokens are asked for."""
    elsewhere = '\n[broker]\nurl = "mqtt://192.0.2.1"\n'
    for broker, enrolment, insecure, fine in (
        ("", "open", False, True),
        ('\n[broker]\nurl = "mqtt://127.0.0.1"\n', "open", False, True),
        (elsewhere, "open", False, False),
        (elsewhere, "open", True, True),
        (elsewhere, "token", False, True),
    ):
        config.write_text(f'{CONFIG}{broker}\n[trust]\nenrolment = "{enrolment}"\n')
        with contextlib.nullcontext() if fine else pytest.raises(ConfigError, match="set it to 'token'"):
            check_enrolment(load_config(config), insecure=insecure)


def test_trust_outlives_a_run(config: pathlib.Path) -> None:
    """It lies in the run's folder, or where the configuration says; who is trusted makes no other run of it."""
    first = load_config(config)
    assert trust_folder(first) == first.out / "trust"
    config.write_text(CONFIG + '\n[trust]\nfolder = "fleet"\n')
    second = load_config(config)
    assert trust_folder(second) == config.parent / "fleet"
    assert first.digest() == second.digest()
