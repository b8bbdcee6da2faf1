"""The broker: one that is given, or one on this machine that lives as long as the coordinator.

`auto` takes the first of: a `mosquitto` on PATH or in /usr/sbin, with a configuration of ours; amqtt, in a process of
its own. Either listens on loopback alone, on a free port that is kept for the whole run (in `broker.json`), so that
devices find it again after a restart of the broker or of the coordinator. It has no durable state, and needs none: see
docs/protocol.md. It holds every client to the fleet's rules (`access`) by the name that it gives: on one machine that
keeps apart what is in order, and stops nobody who lies. For other machines see `fleet_broker`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from coordinator.access import mosquitto_acl
from coordinator.errors import BrokerError
from edge_sdk.wire.blobs import written_atomically
from edge_sdk.wire.errors import last_line
from edge_sdk.wire.lifeline import end_process

START_S: Final = 20.0
RESTART_S: Final = 1.0  # between two attempts to bring a dead broker back
LOOPBACK: Final = "127.0.0.1"
FOLDERS: Final = "/usr/sbin:/usr/local/sbin"  # Debian keeps mosquitto where an ordinary user's PATH does not look

MOSQUITTO: Final = """\
listener {port} {host}
allow_anonymous true
acl_file {acl}
persistence false
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
"""
AS_ROOT: Final = "user root\n"  # else, started by root, it becomes somebody who may not read the access list


class Broker:
    """A broker process of ours. `url` is where it is, `what` says which one it is, `pid` is its process."""

    def __init__(self, folder: pathlib.Path, fleet: str, only: str | None = None) -> None:
        """Start it, or find the one that a coordinator before us left running; `only` one of that name, if given.

        Raises BrokerError.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._fleet, self._tried_at_s = folder, fleet, 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self.pid, self._port = _recorded(folder)
        self.what, self._command = _choose(folder, fleet, only)
        self.url = f"mqtt://{LOOPBACK}:{self._port}"
        if not (_listens(self._port) and _is_alive(self.pid)):
            self._start()

    def revive(self) -> bool:
        """Start it again if it died; True when that was so. Call it now and then."""
        if self._process is not None and self._process.poll() is None:
            return False
        if self._process is None and _is_alive(self.pid):
            return False
        if time.monotonic() - self._tried_at_s < RESTART_S:
            return False
        self._start()
        return True

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            end_process(self._process)
        elif _is_alive(self.pid):
            os.kill(self.pid, signal.SIGTERM)
        (self._folder / "broker.json").unlink(missing_ok=True)

    def _start(self) -> None:
        self._tried_at_s = time.monotonic()
        if _listens(self._port):
            path = self._folder / "broker.json"
            msg = f"port {self._port} is another program's now: end that, or delete {path} to take another port"
            raise BrokerError(msg)
        acl = self._folder.absolute() / "acl"
        acl.write_text(mosquitto_acl(self._fleet), "utf-8")
        said = MOSQUITTO.format(port=self._port, host=LOOPBACK, acl=acl) + AS_ROOT * (os.geteuid() == 0)
        (self._folder / "mosquitto.conf").write_text(said, "utf-8")
        log = self._folder / "broker.log"
        with log.open("ab") as file:
            process = self._process = subprocess.Popen(
                self._command(self._port), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        self.pid = process.pid
        with written_atomically(self._folder / "broker.json") as record:
            record.write(json.dumps({"pid": self.pid, "port": self._port}).encode())
        deadline_s = time.monotonic() + START_S
        while not _listens(self._port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                process.kill()
                said = last_line(log.read_text("utf-8", errors="replace"), "it said nothing")
                msg = f"{self.what} does not start: {said}; see {log}"
                raise BrokerError(msg)
            time.sleep(0.05)


def _choose(folder: pathlib.Path, fleet: str, only: str | None) -> tuple[str, Callable[[int], list[str]]]:
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:{FOLDERS}")
    if found and only in {None, "mosquitto"}:
        return "mosquitto", lambda _port: [found, "-c", str(folder / "mosquitto.conf")]
    if importlib.util.find_spec("amqtt") and only in {None, "amqtt"}:
        return "amqtt", lambda port: [sys.executable, "-m", "coordinator.amqtt_broker", LOOPBACK, str(port), fleet]
    msg = f"no {only or 'broker'} here: install mosquitto, or pip install 'fedpeat[coordinator]', or set broker.url"
    raise BrokerError(msg)


def _recorded(folder: pathlib.Path) -> tuple[int, int]:
    """The process id and port of last time, or 0 and a free port."""
    try:
        record = json.loads((folder / "broker.json").read_text("utf-8"))
        return int(record["pid"]), int(record["port"])
    except (OSError, ValueError, KeyError, TypeError):
        with socket.create_server((LOOPBACK, 0)) as server:
            return 0, int(server.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    """Whether the process exists and is a broker: process ids are used again."""
    try:
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return pid > 0 and (b"mosquitto" in command or b"amqtt_broker" in command)
