"""A decision in words, for whoever runs the fleet. Pure."""

from __future__ import annotations

from coordinator.policy.estimates import Fetching
from coordinator.policy.types import Choice, DeviceView, Observation
from edge_sdk.wire.messages import threads_at

SMALL_BYTES = 10_000_000  # what is smaller is told with tenths of a megabyte


def in_words(choice: Choice, device: DeviceView, observation: Observation, part: float | None = None) -> str:
    """`int8 (38 of 141 MB to fetch), int4 delta, 25 % of the bandwidth, 2 of 4 threads`.

    `part` of the bandwidth is the device's own; where it is not known yet, its share is told. What no bandwidth is
    configured for is not told.
    """
    terms = observation.terms
    words = [f"{choice.level}{_to_fetch(choice.level, device, observation)}"]
    words.append(f"{(choice.codec or terms.codec).value} delta")
    if terms.bandwidth_bytes_s > 0:
        words.append(f"a share of {choice.share:g}" if part is None else f"{100 * part:.0f} % of the bandwidth")
    words.append(f"{threads_at(choice.power, device.threads)} of {device.threads} threads")
    return ", ".join(words)


def _to_fetch(name: str, device: DeviceView, observation: Observation) -> str:
    """Of the level's files, those that the device is not known to hold."""
    level = next((level for level in observation.levels if level.name == name), None)
    if level is None or not level.size_bytes:
        return ""
    lacks = Fetching(observation.levels).lacks_bytes(name, device.holds)
    digits = 0 if level.size_bytes >= SMALL_BYTES else 1
    return f" ({lacks / 1e6:.{digits}f} of {level.size_bytes / 1e6:.{digits}f} MB to fetch)"


def seen_in_words(observation: Observation) -> str:
    """`round 3 of 10: asked about 2 of 4 devices, 3 new answers, held-out loss 3.912`."""
    terms = observation.terms
    about = f"asked about {len(observation.devices)} of {len(observation.fleet)} devices"
    words = [f"round {terms.round} of {terms.rounds}: {about}", f"{len(observation.answers)} new answers"]
    if terms.loss > 0:
        words.append(f"held-out loss {terms.loss:.3f}")
    return ", ".join(words)
