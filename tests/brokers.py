"""A real Mosquitto for one test: started, killed and started again on the same port."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field

import pytest

from coordinator.broker import FOLDERS

START_TIMEOUT_S = 10.0


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
class Mosquitto:
    """One broker process on the loopback address, without persistence; `folder` holds its configuration and log."""

    program: str
    folder: pathlib.Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, as `mqtt://127.0.0.1:PORT`."""
        return f"mqtt://{self.host}:{self.port}"

    def start(self) -> None:
        """Start it and wait until it accepts connections. Raises RuntimeError with its log when it does not."""
        configuration = self.folder / "mosquitto.conf"
        configuration.write_text(
            f"listener {self.port} {self.host}\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n"
        )
        log = self.folder / "mosquitto.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen([self.program, "-c", str(configuration)], stdout=out, stderr=out)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1.0):
                return
            time.sleep(0.02)
        self.kill()
        msg = f"mosquitto does not accept connections on {self.url}: {log.read_text()}"
        raise RuntimeError(msg)

    def kill(self) -> None:
        """Kill it as a power cut would: SIGKILL, nothing said to its clients."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
