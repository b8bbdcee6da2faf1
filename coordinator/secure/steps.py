"""The steps of one secure sum, without sockets, files or clocks: facts make its state, and every one is written down.

    gathering   devices train; who has, joins with its keys
    sharing     each has its neighbours, and deals its secrets out to them
    masking     each that has dealt, and of whose neighbours enough have, gets its boxes, masks, and delivers
    unmasking   those who delivered give up shares of each other, and of those who did not

Rules:

- a step ends when everybody has answered, or after `step_s`: who is late by then has dropped out;
- a sum never has fewer than `least` devices, and never one of which too few neighbours are left to open its secrets;
- a share counts if it has the digest that its dealer has said;
- a question is asked again as long as it is not answered, after `ASK_S`, and when the device says Hello.

What `Standing` says follows from the facts alone, so a coordinator that was killed goes on where it was. The steps'
times begin anew then: no clock outlives a process.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from coordinator.secure.graph import degree, neighbours
from edge_sdk.wire.secure.keys import digest_of
from edge_sdk.wire.secure.said import (
    DIGEST_BYTES,
    MaskInbox,
    MaskKeys,
    MaskPeers,
    MaskShares,
    Peer,
    UnmaskCall,
    UnmaskShares,
)
from edge_sdk.wire.secure.shamir import threshold_of

ASK_S: Final = 5.0
LEAST: Final = 3  # devices in a sum: of two, each would know the other's part


class Step(enum.Enum):
    """How far a sum is."""

    GATHERING = "gathering"
    SHARING = "sharing"
    MASKING = "masking"
    UNMASKING = "unmasking"


# ---- facts


@dataclass(frozen=True, slots=True)
class Joined:
    """A device has trained; `identity` is the key that it is enrolled with."""

    device: str
    identity: bytes
    keys: MaskKeys


@dataclass(frozen=True, slots=True)
class Begun:
    """Nobody joins any more: who is whose neighbour."""

    neighbours: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Shared:
    """A device has dealt its secrets out."""

    device: str
    shares: MaskShares


@dataclass(frozen=True, slots=True)
class Going:
    """Those who mask."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Called:
    """Those whose masked deltas are in the sum."""

    alive: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Revealed:
    """Shares that a device has given up, of which every one is what its dealer has said."""

    device: str
    shares: UnmaskShares


Fact = Joined | Begun | Shared | Going | Called | Revealed
FACTS: Final[dict[str, type[Fact]]] = {kind.__name__: kind for kind in (Joined, Begun, Shared, Going, Called, Revealed)}


@dataclass(slots=True)
class Standing:
    """What the facts of a sum come to, by device."""

    joined: dict[str, Joined] = field(default_factory=dict)
    neighbours: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: dict[str, MaskShares] = field(default_factory=dict)
    going: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    revealed: dict[str, UnmaskShares] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Iterable[Fact]) -> Standing:
        """Of these, in their order."""
        found = cls()
        for fact in facts:
            found.apply(fact)
        return found

    def apply(self, fact: Fact) -> None:
        """One more."""
        if isinstance(fact, Joined):
            self.joined[fact.device] = fact
        elif isinstance(fact, Begun):
            self.neighbours = dict(fact.neighbours)
        elif isinstance(fact, Shared):
            self.shared[fact.device] = fact.shares
        elif isinstance(fact, Going):
            self.going = fact.devices
        elif isinstance(fact, Called):
            self.alive = fact.alive
        else:
            self.revealed[fact.device] = fact.shares

    @property
    def step(self) -> Step:
        """How far it is."""
        if self.alive:
            return Step.UNMASKING
        if self.going:
            return Step.MASKING
        return Step.SHARING if self.neighbours else Step.GATHERING

    def threshold(self, device: str) -> int:
        """How many shares open a secret of this device."""
        return threshold_of(len(self.neighbours[device]))

    def masked_with(self, device: str) -> list[str]:
        """The neighbours that it has a mask with."""
        return [name for name in self.neighbours[device] if name in self.going]

    @property
    def dropped(self) -> list[str]:
        """Those that masks in the sum are with, and that are not in it."""
        alive = set(self.alive)
        return [name for name in self.going if name not in alive and alive & set(self.neighbours[name])]

    def seed_shares(self, device: str) -> dict[str, bytes]:
        """What was given up of a device's seed, by whom."""
        return {name: shares.seeds[device] for name, shares in self.revealed.items() if device in shares.seeds}

    def key_shares(self, device: str) -> dict[str, bytes]:
        """What was given up of its key."""
        return {name: shares.keys[device] for name, shares in self.revealed.items() if device in shares.keys}


# ---- what happens


@dataclass(frozen=True, slots=True)
class Tell:
    """Say this to the device."""

    device: str
    message: MaskPeers | MaskInbox | UnmaskCall


@dataclass(frozen=True, slots=True)
class Record:
    """Write this down, before anything else is done."""

    fact: Fact


@dataclass(frozen=True, slots=True)
class Liar:
    """Say that what came from a device is not what it has to be; it counts as not answered."""

    device: str
    why: str


Outcome = Tell | Record | Liar


class SecureSum:
    """One sum. `standing`, `failed`, why it cannot be, and `opened` may be read, never written."""

    def __init__(self, step_s: float, least: int, most_neighbours: int, facts: Iterable[Fact], now_s: float) -> None:
        """Go on where `facts` end. `most_neighbours` is of each device; 0: as many as `graph.degree` says."""
        self._step_s, self._least, self._most = step_s, max(least, LEAST), most_neighbours
        self.standing = Standing.of(facts)
        self.failed, self.opened = "", False
        self._ends_s, self._asked_s = now_s + step_s, dict[str, float]()
        self._waiting = set[str]()

    def join(self, device: str, identity: bytes, keys: MaskKeys) -> Iterator[Outcome]:
        """A device has trained. Its keys count until the sum begins; another word later changes nothing."""
        joined = Joined(device, identity, keys)
        if self.standing.step is Step.GATHERING and self.standing.joined.get(device) != joined:
            yield self._record(joined)

    def begin(self, devices: Iterable[str], now_s: float, lot: random.Random) -> Iterator[Outcome]:
        """Nobody joins any more: these devices are in it."""
        names = [name for name in devices if name in self.standing.joined]
        if len(names) < self._least:
            self.failed = f"{len(names)} devices have trained, a secure sum needs {self._least}"
            return
        most = min(self._most or degree(len(names)), len(names) - 1)
        yield self._record(Begun(neighbours(names, most, lot)))
        yield from self._ask_all(now_s)

    def shared(self, device: str, shares: MaskShares) -> Iterator[Outcome]:
        """A device has dealt its secrets out."""
        standing = self.standing
        if standing.step is not Step.SHARING or device not in standing.neighbours or device in standing.shared:
            return
        if set(shares.boxes) != set(standing.neighbours[device]):
            yield Liar(device, "boxes for others than its neighbours")
        else:
            yield self._record(Shared(device, shares))

    def revealed(self, device: str, shares: UnmaskShares) -> Iterator[Outcome]:
        """A device has given up its shares."""
        standing = self.standing
        if standing.step is not Step.UNMASKING or device not in standing.alive or device in standing.revealed:
            return
        call = self._call(device)
        given = [(set(shares.seeds), call.alive, 0, shares.seeds), (set(shares.keys), call.dropped, 1, shares.keys)]
        for names, asked, which, found in given:
            if not names <= set(asked):
                yield Liar(device, "shares that nobody asked for")
                return
            for name in names:
                digests = standing.shared[name].digests[device]
                if digest_of(found[name]) != digests[which * DIGEST_BYTES :][:DIGEST_BYTES]:
                    yield Liar(device, f"a share of {name} that is not what {name} has dealt")
                    return
        yield self._record(Revealed(device, shares))

    def advance(self, waiting: set[str], delivered: set[str], now_s: float) -> Iterator[Outcome]:
        """Take every step that is due. Of the devices some may still deliver, others have `delivered`.

        Afterwards, a sum that has `failed` or is `opened` is over.
        """
        self._waiting = waiting
        while not (self.failed or self.opened):
            before = self.standing.step
            if before is Step.SHARING:
                yield from self._close_sharing(waiting, now_s)
            elif before is Step.MASKING:
                yield from self._close_masking(waiting, delivered, now_s)
            elif before is Step.UNMASKING:
                self._close_unmasking(now_s)
            if self.standing.step is before:
                return

    def ask_again(self, now_s: float, device: str = "") -> Iterator[Outcome]:
        """The questions that are not answered for a while; at once of a device that has just come back."""
        for name in [device] if device else list(self.standing.neighbours):
            if device or now_s - self._asked_s.get(name, 0.0) >= ASK_S:
                yield from self._ask(name, now_s)

    def members(self) -> set[str]:
        """Who is still in it."""
        standing = self.standing
        return set(standing.alive or standing.going or standing.neighbours or standing.joined)

    # ---- the ends of steps

    def _close_sharing(self, waiting: set[str], now_s: float) -> Iterator[Outcome]:
        standing = self.standing
        here = waiting & set(standing.neighbours)
        if now_s < self._ends_s and not here <= set(standing.shared):
            return
        going = here & set(standing.shared)
        while lonely := {name for name in going if len(going & set(standing.neighbours[name])) < self._needs(name)}:
            going -= lonely
        if len(going) < self._least:
            self.failed = f"{len(going)} devices have dealt out their secrets, {self._least} are needed"
            return
        yield self._record(Going(tuple(sorted(going))))
        self._ends_s = now_s + self._step_s
        yield from self._ask_all(now_s)

    def _close_masking(self, waiting: set[str], delivered: set[str], now_s: float) -> Iterator[Outcome]:
        going = set(self.standing.going)
        if now_s < self._ends_s and going & waiting:
            return
        alive = going & delivered
        if len(alive) < self._least:
            self.failed = f"{len(alive)} masked deltas came, {self._least} are needed"
            return
        for name in sorted(going):
            left = len(alive & set(self.standing.neighbours[name]))
            if left < self._needs(name) and (name in alive or left):
                what = f"{left} of {name}'s neighbours are left, {self._needs(name)} are needed"
                self.failed = f"too many devices dropped out to open the sum: {what}"
                return
        yield self._record(Called(tuple(sorted(alive))))
        self._ends_s = now_s + self._step_s
        yield from self._ask_all(now_s)

    def _close_unmasking(self, now_s: float) -> None:
        standing = self.standing
        lacks = [name for name in standing.alive if len(standing.seed_shares(name)) < standing.threshold(name)]
        lacks += [name for name in standing.dropped if len(standing.key_shares(name)) < standing.threshold(name)]
        self.opened = not lacks
        if lacks and now_s >= self._ends_s:
            self.failed = f"too few shares of {lacks[0]} came to open the sum, and of {len(lacks) - 1} others"

    # ---- questions

    def _needs(self, device: str) -> int:
        return self.standing.threshold(device)

    def _ask_all(self, now_s: float) -> Iterator[Outcome]:
        for name in self.standing.neighbours:
            yield from self._ask(name, now_s)

    def _ask(self, device: str, now_s: float) -> Iterator[Outcome]:
        """What the device has not answered yet, if there is anything."""
        standing = self.standing
        if device not in standing.neighbours:
            return
        message: MaskPeers | MaskInbox | UnmaskCall | None = None
        if standing.step is Step.SHARING and device not in standing.shared:
            message = MaskPeers(self._task(device), tuple(map(self._peer, standing.neighbours[device])))
        elif standing.step is Step.MASKING and device in standing.going and device in self._waiting:
            boxes = {name: standing.shared[name].boxes[device] for name in standing.masked_with(device)}
            message = MaskInbox(self._task(device), boxes)
        elif standing.step is Step.UNMASKING and device in standing.alive and device not in standing.revealed:
            message = self._call(device)
        if message is not None:
            self._asked_s[device] = now_s
            yield Tell(device, message)

    def _call(self, device: str) -> UnmaskCall:
        """Of everybody that the device has a mask with."""
        with_, alive = self.standing.masked_with(device), set(self.standing.alive)
        called = (tuple(n for n in with_ if n in alive), tuple(n for n in with_ if n not in alive))
        return UnmaskCall(self._task(device), *called)

    def _peer(self, device: str) -> Peer:
        joined = self.standing.joined[device]
        return Peer.of(device, joined.identity, joined.keys)

    def _task(self, device: str) -> str:
        return self.standing.joined[device].keys.task_id

    def _record(self, fact: Fact) -> Record:
        self.standing.apply(fact)
        return Record(fact)
