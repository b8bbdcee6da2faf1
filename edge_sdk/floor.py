"""What a device's owner asks of every task at least, and whom its neighbours in secure sums may be: `[privacy]` of
`device.toml`.

A roster is a text file of a line for each device: its name, a space, its public key in hexadecimal.
"""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import ConfigError
from edge_sdk.wire.errors import why_unreadable
from edge_sdk.wire.messages import Task
from edge_sdk.wire.settings import number

LINE: Final = re.compile(r"(\S{1,64}) ([0-9a-f]{64})")
MAX_ROSTER_BYTES: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """With `secure_sum` no task without one; with a `roster` no neighbours but those on it. No task with less noise on
    single examples than `noise_multiplier`, relative to their bound.
    """

    secure_sum: bool = False
    noise_multiplier: float = number(0, 1e6, 0.0)
    roster: pathlib.Path | None = None

    def why_not(self, task: Task) -> str:
        """Why this task is less private than the owner allows; empty where it is not."""
        if self.secure_sum and task.masking is None:
            return "this device takes part in secure sums alone, and the task's delta would be seen"
        found = 0.0 if task.example_noise is None else task.example_noise.noise_multiplier
        if found < self.noise_multiplier:
            return f"noise of {found:g} on single examples, this device asks for {self.noise_multiplier:g}"
        return ""

    def peers(self) -> dict[str, bytes] | None:
        """The identities on the roster by name, None without one. Raises ConfigError."""
        if self.roster is None:
            return None
        try:
            if self.roster.stat().st_size > MAX_ROSTER_BYTES:
                msg = f"{self.roster}: a roster of more than {MAX_ROSTER_BYTES} bytes"
                raise ConfigError(msg)
            lines = self.roster.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{self.roster}: cannot be read: {why_unreadable(error)}"
            raise ConfigError(msg) from error
        found = dict[str, bytes]()
        for place, line in enumerate(lines, start=1):
            match = LINE.fullmatch(line.strip())
            if line.strip() and match is None:
                msg = f"{self.roster}, line {place}: write a name, a space, and a public key of 64 hexadecimal digits"
                raise ConfigError(msg)
            if match is not None:
                found[match[1]] = bytes.fromhex(match[2])
        return found
