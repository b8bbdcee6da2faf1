"""A broker on this machine that comes back."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import time

import pytest

from coordinator.broker import Broker
from coordinator.errors import BrokerError
from tests.brokers import find_mosquitto


def port_of(broker: Broker) -> int:
    """Where it listens."""
    return int(broker.url.rpartition(":")[2])


def listens(port: int) -> bool:
    """Whether somebody answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@pytest.fixture(params=["mosquitto", "amqtt"])
def first_choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> str:
    """A machine on which this broker is the first choice."""
    if request.param == "mosquitto":
        find_mosquitto()
    else:
        monkeypatch.setattr("coordinator.broker.FOLDERS", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path))
    return str(request.param)


def test_killed_it_comes_back_on_the_same_port(first_choice: str, tmp_path: pathlib.Path) -> None:
    """After SIGKILL the broker is there again, where devices look for it; closing ends it and forgets the port."""
    broker = Broker(tmp_path / "broker", "garden")
    port, before = port_of(broker), broker.pid
    assert broker.what == first_choice
    assert not broker.revive()
    os.kill(before, signal.SIGKILL)
    deadline_s = time.monotonic() + 15
    while not broker.revive() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert broker.pid != before
    assert listens(port)
    broker.close()
    assert not listens(port)
    assert not (tmp_path / "broker" / "broker.json").exists()


@pytest.mark.usefixtures("first_choice")
def test_a_restarted_coordinator_finds_its_broker(tmp_path: pathlib.Path) -> None:
    """A broker left running by a coordinator that was killed is taken over, not doubled, and ended with the new one."""
    left = Broker(tmp_path, "garden")
    found = Broker(tmp_path, "garden")
    assert (found.url, found.pid) == (left.url, left.pid)
    found.close()
    left.close()
    assert not listens(port_of(left))


@pytest.mark.usefixtures("first_choice")
def test_listens_on_loopback_alone(tmp_path: pathlib.Path) -> None:
    """The address is this machine's own, and at another of its addresses nobody answers."""
    broker = Broker(tmp_path, "garden")
    assert broker.url.startswith("mqtt://127.0.0.1:")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port_of(broker)), timeout=1)
    broker.close()


def test_a_port_that_another_program_took_is_said(tmp_path: pathlib.Path) -> None:
    """Devices look for the run's broker at its port: a program that answers there instead is not taken for it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        record = tmp_path / "broker.json"
        record.write_text(json.dumps({"pid": 0, "port": other.getsockname()[1]}))
        with pytest.raises(BrokerError, match=r"another program's now: end that, or delete .*broker\.json"):
            Broker(tmp_path, "garden")
    assert record.exists()


def test_no_broker_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Where there is none, one line says what to install."""
    monkeypatch.setattr("coordinator.broker.FOLDERS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BrokerError, match="install mosquitto"):
        Broker(tmp_path / "broker", "garden")
