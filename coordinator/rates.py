"""How fast each participant's blobs may go while a round is open: its part of the bandwidth, by its share. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.config import TransferConfig

UNBOUNDED = 0.0


def parts(shares: Mapping[str, float]) -> dict[str, float]:
    """The part of the whole that each share is; together they are 1."""
    total = sum(shares.values())
    return {device: share / total for device, share in shares.items()}


def rates(transfer: TransferConfig, shares: Mapping[str, float]) -> dict[str, float]:
    """Bytes a second for each device with a share; none where no bandwidth is configured."""
    all_bytes_s = transfer.megabytes_s * 1e6
    if not all_bytes_s:
        return {}
    return {device: least(transfer, part * all_bytes_s) for device, part in parts(shares).items()}


def least(transfer: TransferConfig, bytes_s: float = UNBOUNDED) -> float:
    """This rate or the one that is configured for every device, whichever is slower; 0: neither bounds anything."""
    return min((rate for rate in (bytes_s, transfer.device_megabytes_s * 1e6) if rate > UNBOUNDED), default=UNBOUNDED)
