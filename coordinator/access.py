"""Who may do what on a fleet's broker: one list of rules, for every broker.

Whoever speaks has a name: the one in its certificate or, on loopback, the one that it gives. A device writes under its
own name and reads what is for it or for all; what it sends is read by the coordinator alone. The coordinator goes by a
name that no device can have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.topics import COORDINATOR, DEVICE, Topics

ANY: Final = "+"


@dataclass(frozen=True, slots=True)
class Rights:
    """Patterns of topics, as in subscriptions."""

    read: tuple[str, ...]
    write: tuple[str, ...]


def rights(fleet: str, name: str) -> Rights:
    """What the owner of a name may do. Raises ValueError for a fleet's name that is none."""
    topics = Topics(fleet)
    if name == COORDINATOR:
        every = (topics.announcement, topics.manifest(ANY), topics.all(ANY))
        return Rights(read=(*every, topics.presence(ANY), topics.up(ANY)), write=(*every, topics.down(ANY)))
    if not DEVICE.fullmatch(name):
        return Rights((), ())
    return Rights(
        read=(topics.announcement, topics.manifest(ANY), topics.all(ANY), topics.down(name)),
        write=(topics.presence(name), topics.up(name)),
    )


def mosquitto_acl(fleet: str) -> str:
    """The rules as an `acl_file` of Mosquitto, where %u stands for a client's name. Devices may come later.

    Mosquitto holds devices to it when they publish and when they are to be given something; their subscriptions it
    grants whatever they are.
    """
    name = "a-device"  # put in %u's place: a device's rules are alike but for the name
    device, coordinator = rights(fleet, name), rights(fleet, COORDINATOR)
    note = "# Patterns are for all: Mosquitto warns of those that name nobody, and they are meant."
    each = [line.replace(f"/{name}", "/%u") for line in _lines("pattern", device)]
    return "\n".join([f"user {COORDINATOR}", *_lines("topic", coordinator), "", note, *each]) + "\n"


def _lines(keyword: str, found: Rights) -> list[str]:
    return [f"{keyword} read {topic}" for topic in found.read] + [f"{keyword} write {topic}" for topic in found.write]


def covers(patterns: tuple[str, ...], wanted: str) -> bool:
    """Whether all that `wanted`, a topic or a pattern, can match is matched by one of `patterns`."""
    return any(_covers(pattern.split("/"), wanted.split("/")) for pattern in patterns)


def _covers(pattern: list[str], wanted: list[str]) -> bool:
    if len(pattern) != len(wanted):  # our own patterns have no `#`
        return False
    return all((ours == ANY and theirs != "#") or ours == theirs for ours, theirs in zip(pattern, wanted, strict=True))
