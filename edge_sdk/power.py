"""What a device knows and does about power: its battery, and, where it may, the clock of its cores.

A task's power is a share of the device's threads. Where `device.toml` says `clock = true`, all threads work and the
cores are slowed to that share of their highest clock instead, through Linux's cpufreq, which Raspberry Pis and Jetsons
have alike: a slower core takes less energy for the same work, as its voltage falls with its clock. That needs the right
to write `scaling_max_freq`, see docs/power.md. What it was before is kept in the store: an agent that was killed while
it trained has its clock set back when it is started again.
"""

from __future__ import annotations

import json
import pathlib
from typing import Final

from edge_sdk.errors import ConfigError
from edge_sdk.wire.blobs import written_atomically

CPUFREQ: Final = pathlib.Path("/sys/devices/system/cpu/cpufreq")
FULL: Final = 1.0


def battery() -> float:
    """The share that is left, 0 to 1; 1 on the mains, and where there is no battery that the kernel knows of."""
    import psutil  # two megabytes that an idle agent does without

    sensors = getattr(psutil, "sensors_battery", lambda: None)()
    if sensors is None or sensors.power_plugged:
        return FULL
    return min(max(float(sensors.percent) / 100, 0.0), FULL)


class Clock:
    """The highest clock of all cores, in kilohertz by policy of cpufreq: cores that share one."""

    def __init__(self, note: pathlib.Path, root: pathlib.Path | None = None) -> None:
        """`note` is where it is kept what the clock was before; `root` is CPUFREQ. Sets back what a killed agent left.

        Raises ConfigError where there is no clock that could be set.
        """
        self._note, self.share, root = note, FULL, root or CPUFREQ
        self._policies = sorted(root.glob("policy*"))
        if not self._policies:
            msg = f"clock = true, but {root} has no cores whose clock can be set: leave it out"
            raise ConfigError(msg)
        try:
            if note.is_file():
                self._write(json.loads(note.read_text("utf-8")))
                note.unlink()
            self._write(self._read("scaling_max_freq"))  # as it is: whether it may be written
        except (OSError, ValueError) as error:
            msg = f"clock = true, but the cores' clock cannot be set, see docs/power.md: {error}"
            raise ConfigError(msg) from error

    def slow_to(self, share: float) -> None:
        """Let no core go faster than this share of its highest clock; `share` is then what it came to. Raises OSError.

        No slower than its slowest, and no faster than it was let before.
        """
        self.set_back()
        if share >= FULL:
            return
        before, lowest, highest = (self._read(f"{name}_freq") for name in ("scaling_max", "cpuinfo_min", "cpuinfo_max"))
        with written_atomically(self._note) as file:
            file.write(json.dumps(before).encode())
        self._write({name: min(max(int(share * highest[name]), lowest[name]), before[name]) for name in before})
        found = self._read("scaling_max_freq")  # the kernel takes the nearest that it can
        self.share = min(found[name] / highest[name] for name in found)

    def set_back(self) -> None:
        """As fast as before. Raises OSError."""
        if self._note.is_file():
            self._write(json.loads(self._note.read_text("utf-8")))
            self._note.unlink()
        self.share = FULL

    def _read(self, name: str) -> dict[str, int]:
        return {policy.name: int((policy / name).read_text("ascii")) for policy in self._policies}

    def _write(self, highest: dict[str, int]) -> None:
        for policy in self._policies:
            if policy.name in highest:
                (policy / "scaling_max_freq").write_text(str(int(highest[policy.name])), "ascii")
