"""Decisions as the ledger keeps them: each with all that it was made from, so that it can be made again.

Both are written by `edge_sdk.wire.codec`, and compressed: a fleet's views repeat each other's field names.
"""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from coordinator.errors import LedgerError
from coordinator.history import opened
from coordinator.policy.types import Decision, Observation
from edge_sdk.wire import codec
from edge_sdk.wire.codec import Form
from edge_sdk.wire.errors import WireError

T = TypeVar("T", Observation, Decision)

MAX_BYTES: Final = 1 << 28  # of one observation, unpacked: ten thousand devices have a few megabytes
ENTRIES: Final = 1 << 24  # after a restart all answers of the run are in one


@dataclass(frozen=True, slots=True)
class Logged:
    """One decision, as it was made. `policy` is what decided; `fresh` as in `assignment.Decided`."""

    number: int
    round: int
    attempt: int
    decided_at: float
    policy: str
    fresh: bool
    observation: Observation
    decision: Decision


def packed(value: Observation | Decision) -> bytes:
    """The bytes of a ledger's column."""
    return zlib.compress(codec.encode(value))


def unpacked(kind: type[T], data: bytes) -> T:
    """What `packed` was given. Raises WireError, zlib.error for other bytes."""
    inflating = zlib.decompressobj()
    plain = inflating.decompress(data, MAX_BYTES + 1)
    return codec.decode(kind, plain, MAX_BYTES, Form(entries=ENTRIES))


def read_decisions(path: pathlib.Path) -> Iterator[Logged]:
    """All decisions of the ledger at `path`, in the order in which they were made. Raises LedgerError."""
    with opened(path) as db:
        for number, round_, attempt, decided_at, policy, fresh, observation, decision in db.execute(
            "SELECT number, round, attempt, decided_at, policy, fresh, observation, decision "
            "FROM decisions ORDER BY number"
        ):
            try:
                both = (unpacked(Observation, observation), unpacked(Decision, decision))
            except (WireError, zlib.error) as error:
                msg = f"{path}: decision {number} is damaged: {error}"
                raise LedgerError(msg) from error
            yield Logged(number, round_, attempt, decided_at, policy, bool(fresh), *both)
