"""The agent as the process that stays: how little of the device's memory it holds while it waits."""

from __future__ import annotations

import pathlib
import statistics
import subprocess
import sys
import time

from edge_sdk.memory import read_memory
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
kind = "text-folder"
path = "texts"
"""


def test_an_idle_agent_is_small(mosquitto: Mosquitto, tmp_path: pathlib.Path) -> None:
    """Connected to a real broker and without a task, all of `fedpeat-edge run` is at most 45 MB resident."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("something to learn from")
    (tmp_path / "device.toml").write_text(DEVICE.format(broker=mosquitto.url))
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
