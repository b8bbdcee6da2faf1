"""Acts in secure sums: `member` decides, `vault` keeps, the outbox gets what is masked. Nothing is said before it is
on disk.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from edge_sdk.identity import Identity
from edge_sdk.outbox import Outbox
from edge_sdk.secure import member
from edge_sdk.secure.vault import Kept, Vault
from edge_sdk.wire.errors import MaskError
from edge_sdk.wire.messages import Report, ResultOffer, Task
from edge_sdk.wire.secure.said import MaskInbox, MaskKeys, MaskPeers, MaskShares, UnmaskCall, UnmaskShares


class Sums:
    """The secure sums of one device, in `folder`. `complaints` are lines about what was damaged there."""

    def __init__(
        self, folder: pathlib.Path, identity: Identity, device: str, roster: Mapping[str, bytes] | None = None
    ) -> None:
        """Go on where the last agent of this store ended. Raises OSError."""
        self._vault, self._identity, self._device, self._roster = Vault(folder), identity, device, roster
        kept, self.complaints = self._vault.load()
        self._kept = {one.member.task_id: one for one in kept}

    def waiting(self, outbox: Outbox) -> dict[str, MaskKeys]:
        """What is said of those whose delta is not in the outbox yet, by task. Raises OSError."""
        found = {}
        for task_id, kept in self._kept.items():
            if outbox.holds(task_id):
                self._vault.forget_numbers(task_id)
            elif self._vault.numbers(task_id).exists():
                found[task_id] = kept.member.keys
        return found

    def join(self, task: Task, numbers: pathlib.Path, report: Report) -> MaskKeys:
        """Take part with these numbers; every other sum is over. Raises OSError, ValueError for a task without one."""
        if task.masking is None:
            msg = "a task that is in no sum"
            raise ValueError(msg)
        for task_id in list(self._kept):
            self.forget(task_id)
        begun = member.begin(task.task_id, task.masking.sum_id, self._device, self._identity.signer)
        kept = Kept(begun, report)
        self._vault.begin(kept, numbers)
        self._kept[task.task_id] = kept
        return begun.keys

    def deal(self, message: MaskPeers) -> MaskShares:
        """The boxes for these neighbours. Raises MaskError, OSError."""
        kept = self._of(message.task_id)
        after, said = member.deal(kept.member, message, self._roster)
        self._remember(kept, after)
        return said

    def mask(self, message: MaskInbox, outbox: Outbox, spare: pathlib.Path) -> ResultOffer | None:
        """The masked delta, which is in the outbox when this returns; None where it was before.

        `spare` is a path for it on the way there. Raises MaskError, OSError.
        """
        kept = self._of(message.task_id)
        self._remember(kept, member.receive(kept.member, message))
        kept, numbers = self._of(message.task_id), self._vault.numbers(message.task_id)
        if outbox.holds(message.task_id) or not numbers.exists():
            return None
        from edge_sdk.wire.secure.ring import mask_numbers  # NumPy comes with it

        with numbers.open("rb") as source, spare.open("wb") as target:
            mask_numbers(source, target, member.masks(kept.member))
        report = dataclasses.replace(kept.report, up_bytes=spare.stat().st_size)
        offer = outbox.keep(message.task_id, spare, report)
        self._vault.forget_numbers(message.task_id)
        return offer

    def reveal(self, message: UnmaskCall) -> UnmaskShares:
        """The shares that are called for. Raises MaskError, OSError."""
        kept = self._of(message.task_id)
        after, said = member.reveal(kept.member, message)
        self._remember(kept, after)
        return said

    def forget(self, task_id: str) -> None:
        """That sum is over. Raises OSError."""
        if self._kept.pop(task_id, None) is not None:
            self._vault.forget(task_id)

    def _of(self, task_id: str) -> Kept:
        if task_id not in self._kept:
            msg = "a sum that this device has no part in"
            raise MaskError(msg)
        return self._kept[task_id]

    def _remember(self, kept: Kept, after: member.Member) -> None:
        if after != kept.member:
            self._kept[after.task_id] = dataclasses.replace(kept, member=after)
            self._vault.write(self._kept[after.task_id])
