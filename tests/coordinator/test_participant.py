"""The server's own device: configured as it was told, started again when it ends, and given up where it cannot run."""

from __future__ import annotations

import pathlib
import time

import pytest

from coordinator import participant
from coordinator.config import Config, DataKind, ParticipantConfig, load_config
from coordinator.errors import JobError
from coordinator.participant import Participant
from edge_sdk.config import load_config as load_device
from edge_sdk.wire.tokens import Invitation
from tests.coordinator.samples import CONFIG

NOWHERE = "mqtt://127.0.0.1:9"
TOKEN = Invitation(bytes(32), bytes(32)).token


def configured(folder: pathlib.Path, table: str) -> tuple[Config, ParticipantConfig]:
    """A run with this participant."""
    path = folder / "coordinator.toml"
    path.write_text(f"{CONFIG}\n[participant]\n{table}", encoding="utf-8")
    config = load_config(path)
    assert config.participant is not None
    return config, config.participant


def kept_until_it_ends(found: Participant) -> None:
    """Keep it, as a coordinator does, until that is refused."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        found.keep()
        time.sleep(0.05)


def test_it_is_a_device_as_any_other(tmp_path: pathlib.Path) -> None:
    """What is written is a device's configuration: names with quotes survive, paths are absolute."""
    (tmp_path / 'ä "b"').mkdir()
    table = 'path = \'ä "b"\'\nbudget = "300MB"\nkind = "json-lines"\nthreads = 1\nquota = "3GB"'
    config, asked = configured(tmp_path, table)
    found = Participant(config, asked, NOWHERE, TOKEN)
    found.keep()
    found.close()
    device = load_device(tmp_path / "out" / "participant" / "device.toml")
    assert (device.device, device.fleet, device.broker, device.token) == ("server", "demo", NOWHERE, TOKEN)
    assert (device.budget_bytes, device.quota_bytes, device.threads) == (300_000_000, 3_000_000_000, 1)
    assert (device.data.kind.value, device.data.path) == (DataKind.JSON_LINES.value, tmp_path / 'ä "b"')
    assert device.store == tmp_path / "out" / "participant" / "store"


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ('path = "public"\nbudget = "much"', "cannot take part as server: .*budget is 'much'; it must be a size"),
        ('path = "absent"\nbudget = "1GB"\ndevice = "us"', "cannot take part as us: .*absent is no folder"),
    ],
)
def test_what_cannot_be_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, table: str, complaint: str
) -> None:
    """In the device's own line, after a second attempt."""
    monkeypatch.setattr(participant, "RESTART_S", 0.0)
    found = Participant(*configured(tmp_path, table), NOWHERE, TOKEN)
    with pytest.raises(JobError, match=complaint) as caught:
        kept_until_it_ends(found)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "participant" / "device.log").read_text().count("fedpeat-edge: ") == 2


def test_another_participant_is_no_other_run(tmp_path: pathlib.Path) -> None:
    """Devices come and go: a run may be continued with the server, or without."""
    config, asked = configured(tmp_path, 'path = "public"\nbudget = "1GB"')
    (tmp_path / "alone.toml").write_text(CONFIG)
    assert config.digest() == load_config(tmp_path / "alone.toml").digest()
    assert (asked.path, asked.device) == (tmp_path / "public", "server")
