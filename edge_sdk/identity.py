"""Who this device is, and whom it obeys: its own key, made on the first start, and its coordinator's.

    <folder>/key            the private key, for its owner alone
    <folder>/coordinator    the coordinator's public key, and the highest version of its offers that was taken

Whoever loses the folder is another device, and has to be enrolled again.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Final

from edge_sdk.config import DeviceConfig
from edge_sdk.wire.errors import IntegrityError, WireError
from edge_sdk.wire.keys import own_key
from edge_sdk.wire.records import read_record, write_record
from edge_sdk.wire.tokens import Invitation, read_token

IDENTITY: Final = "identity"  # the folder, in a device's store
MAX_RECORD_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class _Coordinator:
    """The record."""

    key: bytes
    version: int = 0


class Identity:
    """The identity in `folder`. `signer` is the device's own key, `coordinator` the public key of whom it obeys,
    `version` the highest of its offers that was taken, and `invitation` what the device came with.
    """

    def __init__(self, folder: pathlib.Path, invitation: Invitation | None = None) -> None:
        """Find it, or make it; an invitation says which coordinator to obey from now on.

        Raises IntegrityError for a file that is damaged, OSError.
        """
        self.signer = own_key(folder / "key")
        self._path = folder / "coordinator"
        self.coordinator, self.version = self._read()
        self.invitation = invitation
        if invitation is not None and invitation.coordinator != self.coordinator:
            self.pin(invitation.coordinator)

    @classmethod
    def of(cls, config: DeviceConfig) -> Identity:
        """The identity of a configured device. Raises IntegrityError, OSError."""
        return cls(config.store / IDENTITY, read_token(config.token) if config.token else None)

    def pin(self, key: bytes) -> None:
        """Obey the owner of this key from now on; its versions are its own. Raises OSError."""
        write_record(self._path, _Coordinator(key))
        self.coordinator, self.version = key, 0

    def keep_version(self, version: int) -> None:
        """Take no offer of a lower version any more. Raises OSError."""
        if self.coordinator is None:
            msg = "nobody is obeyed yet"
            raise AssertionError(msg)
        write_record(self._path, _Coordinator(self.coordinator, version))
        self.version = version

    def _read(self) -> tuple[bytes | None, int]:
        try:
            record = read_record(_Coordinator, self._path, MAX_RECORD_BYTES)
        except FileNotFoundError:
            return None, 0
        except WireError as error:  # nobody must become our coordinator by damaging a file
            msg = f"{self._path} is damaged: {error}; bring it back from a backup, or delete it and enrol anew"
            raise IntegrityError(msg) from error
        return record.key, record.version
