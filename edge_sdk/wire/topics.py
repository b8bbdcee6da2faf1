"""The only place that builds or reads an MQTT topic.

    <fleet>/v1/announcement          retained   coordinator -> all devices
    <fleet>/v1/manifest/<sha256>     retained   coordinator -> all devices; the manifest's bytes
    <fleet>/v1/all/<sha256>                     coordinator -> all devices that want the blob; its chunks
    <fleet>/v1/presence/<device>     retained   device -> coordinator; also its last will
    <fleet>/v1/up/<device>                      device -> coordinator
    <fleet>/v1/down/<device>                    coordinator -> device

A device writes only under its own name, so a broker's access list can hold it to that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.errors import DecodeError

DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
FLEET = DEVICE
COORDINATOR: Final = "@coordinator"  # what it goes by on a broker: a name that no device can have
NAME_RULE = "letters, digits, dot, dash, underscore, at most 64"  # what both are, in words
KINDS = ("manifest", "all", "presence", "up", "down")


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one fleet. Raises ValueError for names that could mean another topic."""

    fleet: str

    def __post_init__(self) -> None:
        """Refuse wildcards, slashes and empty names."""
        if not FLEET.fullmatch(self.fleet):
            msg = f"{self.fleet!r} is no fleet name: {NAME_RULE}"
            raise ValueError(msg)

    @property
    def announcement(self) -> str:
        """The coordinator is up."""
        return f"{self.fleet}/v1/announcement"

    def manifest(self, sha256: str) -> str:
        """One manifest; `+` for all."""
        return f"{self.fleet}/v1/manifest/{sha256}"

    def all(self, sha256: str) -> str:
        """A blob's chunks, for whoever wants it; `+` for all."""
        return f"{self.fleet}/v1/all/{sha256}"

    def presence(self, device: str) -> str:
        """One device's presence; `+` for all."""
        return f"{self.fleet}/v1/presence/{_device(device)}"

    def up(self, device: str) -> str:
        """From one device; `+` for all."""
        return f"{self.fleet}/v1/up/{_device(device)}"

    def down(self, device: str) -> str:
        """To one device."""
        return f"{self.fleet}/v1/down/{_device(device)}"

    def last_level(self, topic: str) -> str:
        """The device or SHA-256 that a received topic ends in. Raises DecodeError for a topic of another shape."""
        prefix, _, last = topic.rpartition("/")
        if prefix not in {f"{self.fleet}/v1/{kind}" for kind in KINDS} or not DEVICE.fullmatch(last):
            msg = f"topic {topic[:120]!r} is not one of ours"
            raise DecodeError(msg)
        return last


def check_device(device: str) -> str:
    """The device name itself. Raises ValueError for one that could mean another topic or a path."""
    if not DEVICE.fullmatch(device):
        msg = f"{device!r} is no device name: letters, digits, dot, dash, underscore; at most 64"
        raise ValueError(msg)
    return device


def _device(device: str) -> str:
    return device if device == "+" else check_device(device)
