"""What a device does in one secure sum: pure functions over what it remembers of it. No files, no clocks.

Rules, against a coordinator that is curious, or lies:

- keys and secrets are made for one sum and used in no other;
- neighbours count once their own identities have signed their keys for this sum; where the owner has written down which
  identities there are (`roster`), no others count;
- fewer than LEAST neighbours are no cover, and of those that are named in the inbox, and in the call, there must be as
  many as open a secret;
- what was answered once is answered again in the same words; the same question in other words is not answered;
- of a neighbour one share is given up at most, of its seed or of its key: which, is remembered before it is said.

Whoever calls writes what is returned down before it says anything.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edge_sdk.wire.errors import MaskError
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.secure.keys import (
    are_signed,
    close_box,
    digest_of,
    mask_seed,
    new_private,
    open_box,
    public_of,
    sign_keys,
)
from edge_sdk.wire.secure.said import MaskInbox, MaskKeys, MaskPeers, MaskShares, Peer, UnmaskCall, UnmaskShares
from edge_sdk.wire.secure.shamir import SECRET_BYTES, SHARE_BYTES, split, threshold_of

LEAST: Final = 2  # neighbours: the sum of two devices tells each what the other has

Mask = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Member:
    """What a device remembers of a sum. `keys` are as they were said; what came later is empty until it comes.

    `shares` are those of its neighbours' secrets, seed and key, by the names in the inbox whose boxes opened.
    """

    sum_id: str
    device: str
    keys: MaskKeys
    mask_private: bytes
    box_private: bytes
    seed: bytes
    peers: tuple[Peer, ...] = ()
    said: MaskShares | None = None
    inbox: tuple[str, ...] = ()
    shares: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    call: UnmaskCall | None = None

    @property
    def task_id(self) -> str:
        """Whose delta it is."""
        return self.keys.task_id

    @property
    def threshold(self) -> int:
        """How many neighbours open a secret of this device."""
        return threshold_of(len(self.peers))


def begin(task_id: str, sum_id: str, device: str, signer: Signer) -> Member:
    """New keys and secrets for one sum."""
    mask_private, box_private, seed = new_private(), new_private(), secrets.token_bytes(SECRET_BYTES)
    public = (public_of(mask_private), public_of(box_private), digest_of(seed))
    keys = MaskKeys(task_id, *public, sign_keys(signer, sum_id, device, public))
    return Member(sum_id, device, keys, mask_private, box_private, seed)


def deal(member: Member, message: MaskPeers, roster: Mapping[str, bytes] | None = None) -> tuple[Member, MaskShares]:
    """Deal the secrets out to these neighbours. Raises MaskError."""
    if member.said is not None:
        if message.peers != member.peers:
            _refuse("other neighbours than before")
        return member, member.said
    _check_peers(member, message.peers, roster)
    peers = tuple(sorted(message.peers, key=lambda peer: peer.device))
    if peers != message.peers:
        _refuse("neighbours in another order than that of their names")
    points, threshold = range(1, len(peers) + 1), threshold_of(len(peers))
    of_seed, of_key = (split(secret, threshold, points) for secret in (member.seed, member.mask_private))
    boxes, digests = dict[str, bytes](), dict[str, bytes]()
    for point, peer in zip(points, peers, strict=True):
        both, way = (of_seed[point], of_key[point]), (member.device, peer.device)
        boxes[peer.device] = close_box(member.box_private, peer.box_key, member.sum_id, way, b"".join(both))
        digests[peer.device] = b"".join(digest_of(share) for share in both)
    said = MaskShares(member.task_id, boxes, digests)
    return dataclasses.replace(member, peers=peers, said=said), said


def receive(member: Member, message: MaskInbox) -> Member:
    """Take the neighbours' boxes: those who are named are masked with. A box that does not open holds nothing.

    Raises MaskError.
    """
    names = tuple(sorted(message.boxes))
    if member.inbox:
        if names != member.inbox:
            _refuse("another inbox than before")
        return member
    known = {peer.device: peer for peer in member.peers}
    if not set(names) <= set(known):
        _refuse("boxes of who is no neighbour")
    if len(names) < max(member.threshold, LEAST):
        _refuse(f"boxes of {len(names)} neighbours; {max(member.threshold, LEAST)} are needed")
    shares = dict[str, bytes]()
    for name in names:
        try:
            way = (name, member.device)
            box = open_box(member.box_private, known[name].box_key, member.sum_id, way, message.boxes[name])
        except MaskError:
            continue
        if len(box) == 2 * SHARE_BYTES:
            shares[name] = box
    return dataclasses.replace(member, inbox=names, shares=shares)


def masks(member: Member) -> tuple[Mask, ...]:
    """What is added to this device's numbers: its own mask, and one with each neighbour in the inbox. Raises MaskError.

    Misuse: before the inbox came.
    """
    if not member.inbox:
        msg = "masks before the neighbours are known"
        raise ValueError(msg)
    known = {peer.device: peer.mask_key for peer in member.peers}
    found = [(member.seed, 1)]
    for name in member.inbox:
        sign = 1 if member.device < name else -1
        found.append((mask_seed(member.mask_private, known[name], member.sum_id), sign))
    return tuple(found)


def reveal(member: Member, message: UnmaskCall) -> tuple[Member, UnmaskShares]:
    """Give up the shares that are called for. Raises MaskError."""
    if member.call is not None and member.call != message:
        _refuse("another call than before")
    alive, dropped = set(message.alive), set(message.dropped)
    if alive & dropped:
        _refuse(f"{min(alive & dropped)} is in the sum, and is not")
    if not alive | dropped <= set(member.inbox):
        _refuse("a call for shares of who is not masked with")
    if len(alive) < member.threshold:
        _refuse(f"{len(alive)} neighbours are in the sum; {member.threshold} are needed")
    seeds = {name: member.shares[name][:SHARE_BYTES] for name in sorted(alive & member.shares.keys())}
    keys = {name: member.shares[name][SHARE_BYTES:] for name in sorted(dropped & member.shares.keys())}
    return dataclasses.replace(member, call=message), UnmaskShares(member.task_id, seeds, keys)


def _check_peers(member: Member, peers: tuple[Peer, ...], roster: Mapping[str, bytes] | None) -> None:
    names = [peer.device for peer in peers]
    if len(peers) < LEAST:
        _refuse(f"{len(peers)} neighbours; {LEAST} are needed")
    if len(set(names)) != len(names) or member.device in names:
        _refuse("a neighbour twice, or oneself")
    if len({peer.identity for peer in peers}) != len(peers):
        _refuse("two neighbours with one identity")
    for peer in peers:
        if roster is not None and roster.get(peer.device) != peer.identity:
            _refuse(f"{peer.device} is not on the roster with this identity")
        if not are_signed(peer.identity, peer.signature, member.sum_id, peer.device, peer.signed):
            _refuse(f"{peer.device} has not signed its keys for this sum")


def _refuse(why: str) -> None:
    raise MaskError(why)
