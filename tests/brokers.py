"""Real brokers for tests: started, killed and started again on the same port."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest

from coordinator.broker import FOLDERS
from edge_sdk.wire.endpoint import TlsFiles

START_TIMEOUT_S = 30.0


def find_mosquitto() -> str:
    """The program, found where the coordinator finds it; the test is skipped where there is none."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:{FOLDERS}")
    if program is None:
        pytest.skip("no mosquitto here; on Debian: apt-get install mosquitto")
    return program


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class BrokerProcess:
    """One broker process on the loopback address, that forgets; `folder` holds its configuration and log."""

    folder: pathlib.Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, as `mqtt://127.0.0.1:PORT`."""
        return f"mqtt://{self.host}:{self.port}"

    def command(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it accepts connections. Raises RuntimeError with its log when it does not."""
        log = self.folder / "broker.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(self.command(), stdout=out, stderr=out)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1.0):
                return
            time.sleep(0.02)
        self.kill()
        msg = f"the broker does not accept connections on {self.url}: {log.read_text()}"
        raise RuntimeError(msg)

    def kill(self) -> None:
        """Kill it as a power cut would: SIGKILL, nothing said to its clients."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass(slots=True)
class Mosquitto(BrokerProcess):
    """Mosquitto; `lines` are put to its configuration."""

    lines: str = "allow_anonymous true\nmax_queued_messages 0\n"

    def command(self) -> list[str]:
        """See BrokerProcess."""
        configuration = self.folder / "mosquitto.conf"
        text = f"listener {self.port} {self.host}\npersistence false\nuser root\n{self.lines}"
        configuration.write_text(text)
        return [find_mosquitto(), "-c", str(configuration)]


@dataclass(slots=True)
class Amqtt(BrokerProcess):
    """amqtt, as the coordinator starts it; held to the rules of `fleet`, unless that is empty."""

    fleet: str = ""

    def command(self) -> list[str]:
        """See BrokerProcess."""
        if importlib.util.find_spec("amqtt") is None:
            pytest.skip("no amqtt here: pip install 'fedpeat[coordinator]'")
        command = [sys.executable, "-m", "coordinator.amqtt_broker", self.host, str(self.port)]
        return [*command, self.fleet] if self.fleet else command


@dataclass(slots=True)
class FleetMosquitto(BrokerProcess):
    """Mosquitto with the configuration that `fedpeat broker init` made in `folder`."""

    @property
    def url(self) -> str:
        """Where it listens, as `mqtts://127.0.0.1:PORT`."""
        return f"mqtts://{self.host}:{self.port}"

    def command(self) -> list[str]:
        """See BrokerProcess. Started by root it stays root, who alone may enter a test's folder."""
        configuration = self.folder / "broker" / "started.conf"
        made = (self.folder / "broker" / "mosquitto.conf").read_text()
        configuration.write_text(f"{made}user root\n")
        return [find_mosquitto(), "-c", str(configuration)]

    def files(self, who: str) -> TlsFiles:
        """What `coordinator` or `devices/NAME` was given."""
        folder = self.folder / who
        return TlsFiles(ca=folder / "ca.crt", certificate=folder / "client.crt", key=folder / "client.key")
