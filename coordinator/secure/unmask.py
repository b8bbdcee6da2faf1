"""What is left when the masks are gone: from masked deltas and shares to the one delta that is their mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np

from coordinator.secure.steps import Standing
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.errors import MaskError
from edge_sdk.wire.secure import ring
from edge_sdk.wire.secure.keys import digest_of, mask_seed, public_of
from edge_sdk.wire.secure.said import Masking
from edge_sdk.wire.secure.shamir import join

SEED: Final = "seed"
KEY: Final = "key"


def unmasked_mean(
    standing: Standing, masked: Iterable[bytes], shapes: Mapping[str, tuple[int, ...]], masking: Masking
) -> tuple[Delta, int]:
    """The weighted mean of the deltas, and the sum of their weights. One masked delta at a time is in memory.

    `masked` are the bytes of those of `standing.alive`. Raises MaskError where shares do not open what was dealt out,
    DecodeError where the sum is none of honest weights.
    """
    total = np.zeros(ring.size_bytes(shapes) // ring.U32.itemsize, ring.U32)
    for data in masked:
        total += np.frombuffer(data, ring.U32)
    for mask in masks_left(standing, masking.sum_id):
        ring.add_mask(total, mask)
    mean, weight = ring.mean_of(total, shapes, masking, len(standing.alive))
    return Delta(mean), weight


def masks_left(standing: Standing, sum_id: str) -> Iterator[ring.Mask]:
    """What has to be added for the sum's masks to go: each device's own, and those with devices that are not in it."""
    for name in standing.alive:
        yield seed_of(standing, name), -1
    for name in standing.dropped:
        private = key_of(standing, name)
        for other in standing.neighbours[name]:
            if other in standing.alive:
                seed = mask_seed(private, standing.joined[other].keys.mask_key, sum_id)
                yield seed, -1 if other < name else 1


def seed_of(standing: Standing, device: str) -> bytes:
    """What a device's own mask is made of. Raises MaskError."""
    seed = _joined(standing, device, standing.seed_shares(device))
    if digest_of(seed) != standing.joined[device].keys.seed_digest:
        _lied(device, SEED)
    return seed


def key_of(standing: Standing, device: str) -> bytes:
    """The private key of a device's masks with others. Raises MaskError."""
    private = _joined(standing, device, standing.key_shares(device))
    if public_of(private) != standing.joined[device].keys.mask_key:
        _lied(device, KEY)
    return private


def _joined(standing: Standing, device: str, shares: Mapping[str, bytes]) -> bytes:
    """The secret that `device` dealt out, from the first shares that are enough."""
    threshold, order = standing.threshold(device), standing.neighbours[device]
    if len(shares) < threshold:
        msg = f"{len(shares)} shares of {device}, {threshold} are needed"
        raise MaskError(msg)
    points = {order.index(name) + 1: share for name, share in shares.items()}
    return join({point: points[point] for point in sorted(points)[:threshold]})


def _lied(device: str, what: str) -> None:
    msg = f"what {device} dealt out is not its {what}"
    raise MaskError(msg)
