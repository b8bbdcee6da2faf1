"""A device of a secure sum in few lines: the real `member`, without files."""

from __future__ import annotations

import dataclasses
import io
import secrets
from collections.abc import Mapping

import numpy as np

from edge_sdk.secure import member
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.secure import ring
from edge_sdk.wire.secure.keys import new_private
from edge_sdk.wire.secure.said import MaskInbox, Masking, MaskKeys, MaskPeers, MaskShares, UnmaskCall, UnmaskShares


class Device:
    """`delta` is what it has learned, `numbers` the same as integers, `weight` its share."""

    def __init__(self, name: str, seed: int, shapes: Mapping[str, tuple[int, ...]], masking: Masking) -> None:
        random = np.random.default_rng(seed)
        self.signer = Signer(bytes([seed % 256]) * 32)
        self.delta = {key: random.uniform(-0.9, 0.9, shape).astype(np.float32) for key, shape in shapes.items()}
        self.weight = 1 + seed % masking.whole
        out = io.BytesIO()
        ring.write_numbers(out, self.delta, self.weight, masking)
        self.numbers = out.getvalue()
        self._member = member.begin(f"task.{name}", masking.sum_id, name, self.signer)

    @property
    def keys(self) -> MaskKeys:
        """What it joins with."""
        return self._member.keys

    def deal(self, message: MaskPeers) -> MaskShares:
        """Its boxes."""
        self._member, said = member.deal(self._member, message)
        return said

    def mask(self, message: MaskInbox) -> bytes:
        """Its masked numbers."""
        self._member, out = member.receive(self._member, message), io.BytesIO()
        ring.mask_numbers(io.BytesIO(self.numbers), out, member.masks(self._member))
        return out.getvalue()

    def reveal(self, message: UnmaskCall) -> UnmaskShares:
        """Its shares of others."""
        self._member, said = member.reveal(self._member, message)
        return said

    def lie(self, *, of_key: bool) -> None:
        """From now on it deals out what is not its seed, or not its key."""
        other = {"mask_private": new_private()} if of_key else {"seed": secrets.token_bytes(32)}
        self._member = dataclasses.replace(self._member, **other)  # type: ignore[arg-type]
