"""What is said in a secure sum, in this order.

    MaskKeys      up     I have something to add, and these are my keys
    MaskPeers     down   these are your neighbours: deal your secrets out to them
    MaskShares    up     a box for each of them
    MaskInbox     down   their boxes for you: mask with those who are named, and with nobody else
    ResultOffer   up     the masked delta, which is pulled and receipted like any other
    UnmaskCall    down   these neighbours are in the sum, these are not
    UnmaskShares  up     a share of each: of the seed, or of the key

Each may come again, and gets the same answer; another one in its place gets none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64  # Ed25519's
MAX_PEERS: Final = 128  # neighbours: what is said of them fits into a signed message
MAX_NAME: Final = 64  # characters of a device's name
LONGEST_BOX: Final = 256  # bytes
DIGEST_BYTES: Final = 32
LARGEST: Final = 1e9  # of a bound on numbers


def _long(name: str, data: bytes, length: int) -> None:
    if len(data) != length:
        msg = f"{name} has {len(data)} bytes, it must have {length}"
        raise ValueError(msg)


def _named(what: str, names: object) -> None:
    count = len(names) if isinstance(names, (tuple, dict)) else 0
    if count > MAX_PEERS or (isinstance(names, (tuple, dict)) and any(len(name) > MAX_NAME for name in names)):
        msg = f"{what} of {count} devices; at most {MAX_PEERS}, with names of at most {MAX_NAME} characters"
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Masking:
    """Where a task's delta goes into a secure sum: which one, and how its numbers become integers; see `ring`.

    A delta longer than `clip_norm` is scaled down to it first; 0: none is.
    """

    sum_id: str
    bound: float
    levels: int
    whole: int
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no sum can mean."""
        if len(self.sum_id) > MAX_NAME or not 0 < self.bound <= LARGEST or not 0 <= self.clip_norm <= LARGEST:
            msg = f"the sum {self.sum_id[:MAX_NAME]!r} with a bound of {self.bound} and a norm of {self.clip_norm}"
            raise ValueError(msg)
        if not 1 <= self.levels < 1 << 31 or not 1 <= self.whole < 1 << 31:
            msg = f"{self.levels} levels and weights up to {self.whole}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class MaskKeys:
    """A device has trained, and wants its delta in the sum. Said again until MaskPeers comes.

    Its identity signs the sum, its name, both keys and the digest: see `keys.sign_keys`.
    """

    task_id: str
    mask_key: bytes
    box_key: bytes
    seed_digest: bytes
    signature: bytes

    def __post_init__(self) -> None:
        """Refuse what has another length."""
        _long("mask_key", self.mask_key, KEY_BYTES)
        _long("box_key", self.box_key, KEY_BYTES)
        _long("seed_digest", self.seed_digest, DIGEST_BYTES)
        _long("signature", self.signature, SIGNATURE_BYTES)

    @property
    def signed(self) -> tuple[bytes, bytes, bytes]:
        """What the signature covers beside the sum and the name."""
        return (self.mask_key, self.box_key, self.seed_digest)


@dataclass(frozen=True, slots=True)
class Peer:
    """A neighbour: its identity's public key, and what it said in MaskKeys."""

    device: str
    identity: bytes
    mask_key: bytes
    box_key: bytes
    seed_digest: bytes
    signature: bytes

    @property
    def signed(self) -> tuple[bytes, bytes, bytes]:
        """What the signature covers beside the sum and the name."""
        return (self.mask_key, self.box_key, self.seed_digest)

    @classmethod
    def of(cls, device: str, identity: bytes, keys: MaskKeys) -> Peer:
        """Who has said these keys."""
        return cls(device, identity, *keys.signed, keys.signature)


@dataclass(frozen=True, slots=True)
class MaskPeers:
    """A device's neighbours in the sum, whose number says how many of their shares open a secret."""

    task_id: str
    peers: tuple[Peer, ...]

    def __post_init__(self) -> None:
        """Refuse too many."""
        _named("neighbours", tuple(peer.device for peer in self.peers))


@dataclass(frozen=True, slots=True)
class MaskShares:
    """For each neighbour a box with its shares of both secrets, that of the seed first.

    By the digests of both, in the same order, the coordinator knows a share that is given up later.
    """

    task_id: str
    boxes: Mapping[str, bytes]
    digests: Mapping[str, bytes]

    def __post_init__(self) -> None:
        """Refuse too many, and too long ones."""
        _named("boxes", self.boxes)
        if self.boxes.keys() != self.digests.keys() or any(len(box) > LONGEST_BOX for box in self.boxes.values()):
            msg = f"boxes of at most {LONGEST_BOX} bytes, each with its digests, are asked for"
            raise ValueError(msg)
        for digests in self.digests.values():
            _long("digests", digests, 2 * DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class MaskInbox:
    """The boxes of those neighbours that are still in it, by device. The device masks its delta with them alone."""

    task_id: str
    boxes: Mapping[str, bytes]

    def __post_init__(self) -> None:
        """Refuse too many, and too long ones."""
        _named("boxes", self.boxes)
        if any(len(box) > LONGEST_BOX for box in self.boxes.values()):
            msg = f"a box of more than {LONGEST_BOX} bytes"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class UnmaskCall:
    """Which of the inbox's devices have a masked delta in the sum, and which `dropped` out."""

    task_id: str
    alive: tuple[str, ...]
    dropped: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse too many."""
        _named("devices", (*self.alive, *self.dropped))


@dataclass(frozen=True, slots=True)
class UnmaskShares:
    """Shares of the seeds of those that are in the sum, and of the keys of those that are not, by device."""

    task_id: str
    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        """Refuse too many."""
        _named("shares", {**self.seeds, **self.keys})
