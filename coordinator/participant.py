"""The server takes part: this machine as one more device of its fleet, on public data.

It is what any device is, the process of `fedpeat-edge run`, with a configuration that is written here: same broker,
engine, budget and worker. So the policy gives it a level, and its delta is checked, weighted and aggregated, as any
other's; the rounds know but one thing of it, that none opens without it. FedPEAT, https://arxiv.org/abs/2310.17491
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

from coordinator.config import Config, ParticipantConfig
from coordinator.errors import JobError
from coordinator.places import participant_folder
from edge_sdk.wire.blobs import written_atomically
from edge_sdk.wire.endpoint import TlsFiles
from edge_sdk.wire.errors import last_line
from edge_sdk.wire.lifeline import end_process, parent_environment

RESTART_S: Final = 5.0  # between two attempts to start what ends again and again
WRONG_INPUT: Final = 2  # the exit status of a device that cannot be what its configuration says


class Participant:
    """The device's process. It ends with this one, however that ends."""

    def __init__(
        self, config: Config, participant: ParticipantConfig, broker_url: str, token: str, *, insecure: bool = False
    ) -> None:
        """Nothing is started yet. `token` invites it into the fleet."""
        self._consent = ["--insecure"] if insecure else []
        self._name = participant.device
        self._folder = participant_folder(config)
        self._table = device_table(config, participant, broker_url, token)
        self._process: subprocess.Popen[bytes] | None = None
        self._tried_at_s, self._refused = -math.inf, 0

    def keep(self) -> None:
        """Start it, or start it again where it ended. Call it now and then. Raises JobError where it cannot run.

        Once it may find its store in use: by one whose coordinator was killed, and that is about to end.
        """
        if self._process is not None and self._process.poll() is None:
            return
        if time.monotonic() - self._tried_at_s < RESTART_S:
            return
        self._refused += self._process is not None and self._process.returncode == WRONG_INPUT
        if self._refused > 1:
            said = last_line(self._log.read_text("utf-8", errors="replace"), "it said nothing")
            msg = f"this machine cannot take part as {self._name}: {said.removeprefix('fedpeat-edge: ')}"
            raise JobError(msg)
        self._start()

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            end_process(self._process)

    @property
    def _log(self) -> pathlib.Path:
        return self._folder / "device.log"

    def _start(self) -> None:
        self._tried_at_s = time.monotonic()
        path = self._folder / "device.toml"
        with written_atomically(path) as file:
            file.write(_toml(self._table).encode())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge_sdk.cli", "run", "--config", str(path), *self._consent],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | parent_environment(),
                start_new_session=True,  # a Ctrl-C is the coordinator's, who ends this when it is done
            )


def device_table(config: Config, participant: ParticipantConfig, broker_url: str, token: str) -> dict[str, object]:
    """`device.toml` as a table."""
    return {
        "device": participant.device,
        "fleet": config.fleet,
        "broker": broker_url,
        "token": token,
        "budget": participant.budget,
        "quota": participant.quota,
        "store": str(participant_folder(config).absolute() / "store"),
        **({"threads": participant.threads} if participant.threads else {}),
        "data": {
            "kind": participant.kind.value,
            "path": str(participant.path.absolute()),
            "text_column": participant.text_column,
            "label_column": participant.label_column,
        },
        **({"tls": _files(participant.tls)} if participant.tls is not None else {}),
        "max_packet_bytes": config.broker.max_packet_bytes,
    }


def _files(tls: TlsFiles) -> dict[str, str]:
    return {
        "ca": str(tls.ca.absolute()),
        "certificate": str(tls.certificate.absolute()),
        "key": str(tls.key.absolute()),
    }


def _toml(table: Mapping[str, object], name: str = "") -> str:
    """A table of texts and whole numbers, which TOML writes as JSON does; tables in it come behind them."""
    lines = [f"[{name}]"] if name else []
    lines += [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in table.items()
        if isinstance(value, (str, int))
    ]
    inner = [_toml(value, key) for key, value in table.items() if isinstance(value, Mapping)]
    return "\n".join([*lines, *inner]) + "\n"
