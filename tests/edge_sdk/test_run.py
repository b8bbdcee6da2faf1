"""The agent as the process that stays: how little of the device's memory it holds while it waits."""

from __future__ import annotations

import contextlib
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from edge_sdk.config import load_config
from edge_sdk.errors import ConfigError
from edge_sdk.identity import Identity
from edge_sdk.memory import read_memory
from edge_sdk.run import require_coordinator
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.lifeline import end_process
from tests.brokers import Mosquitto

MB = 10**6
ROOT = pathlib.Path(__file__).parents[2]
IDLE_BYTES = 45 * MB
DEVICE = """
device = "pi"
fleet = "idle"
broker = "{broker}"
budget = "256MB"
store = "store"
[data]
kind = "{kind}"
path = "{path}"
"""


def test_an_idle_agent_is_small(mosquitto: Mosquitto, tmp_path: pathlib.Path) -> None:
    """Connected to a real broker and without a task, all of `fedpeat-edge run` is at most 45 MB resident."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("something to learn from")
    (tmp_path / "device.toml").write_text(DEVICE.format(broker=mosquitto.url, kind="text-folder", path="texts"))
    command = [sys.executable, "-m", "edge_sdk.cli", "run", "--config", str(tmp_path / "device.toml")]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert agent.stdout
        words = [agent.stdout.readline() for _ in range(2)]
        assert "the budget is held by" in words[0]
        assert "connected to the broker" in words[1]
        readings = []
        for _ in range(5):
            time.sleep(0.3)
            readings.append(read_memory(pathlib.Path(f"/proc/{agent.pid}/status")).resident_bytes)
        assert 5 * MB < statistics.median(readings) <= IDLE_BYTES, readings
    finally:
        end_process(agent)
        if agent.stdout:
            agent.stdout.close()


@pytest.mark.parametrize("kind", ["image-files", "image-arrays"])
def test_images_are_looked_at_before_any_model_is_known(
    kind: str, mosquitto: Mosquitto, tmp_path: pathlib.Path
) -> None:
    """A device with images comes to the broker as one with texts does."""
    pillow: Any = pytest.importorskip("PIL.Image")
    pixels = np.zeros((2, 3, 9, 8), np.uint8)
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    pillow.fromarray(pixels[0].transpose(1, 2, 0)).save(tmp_path / "pictures" / "cat" / "1.png")
    np.save(tmp_path / "pictures" / "images.npy", pixels)
    np.save(tmp_path / "pictures" / "labels.npy", np.zeros(2, np.int64))
    (tmp_path / "device.toml").write_text(DEVICE.format(broker=mosquitto.url, kind=kind, path="pictures"))
    command = [sys.executable, "-m", "edge_sdk.cli", "run", "--config", str(tmp_path / "device.toml")]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    try:
        assert agent.stdout
        words = [agent.stdout.readline() for _ in range(2)]
        assert "connected to the broker" in words[1], words
    finally:
        end_process(agent)
        if agent.stdout:
            agent.stdout.close()


def test_pictures_outside_folders_are_refused(tmp_path: pathlib.Path) -> None:
    """Without a folder for each class: one line, and status 2, before the broker is asked for."""
    (tmp_path / "pictures").mkdir()
    device = DEVICE.format(broker="mqtt://localhost:1", kind="image-files", path="pictures")
    (tmp_path / "device.toml").write_text(device)
    command = [sys.executable, "-m", "edge_sdk.cli", "run", "--config", str(tmp_path / "device.toml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "has no folders: pictures of each class must be in one of its own" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("broker", "knows", "insecure", "fine"),
    [
        ("mqtts://192.0.2.1", False, False, False),
        ("mqtts://192.0.2.1", False, True, True),
        ("mqtts://192.0.2.1", True, False, True),
        ("mqtt://127.0.0.1", False, False, True),
    ],
)
def test_a_device_obeys_no_stranger(
    tmp_path: pathlib.Path, broker: str, *, knows: bool, insecure: bool, fine: bool
) -> None:
    """On another machine's broker, whatever that shows, a device has to know its coordinator before it asks anybody."""
    (tmp_path / "device.toml").write_text(DEVICE.format(broker=broker, kind="text-folder", path="texts"))
    config, identity = load_config(tmp_path / "device.toml"), Identity(tmp_path / "identity")
    if knows:
        identity.pin(Signer(bytes(32)).public)
    told = "put the token that `fedpeat devices invite pi` prints into its configuration"
    with contextlib.nullcontext() if fine else pytest.raises(ConfigError, match=told):
        require_coordinator(config, identity, insecure=insecure)
