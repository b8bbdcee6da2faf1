"""Where a run keeps what, in its folder `out`."""

from __future__ import annotations

import pathlib

from coordinator.config import Config


def artifact_folder(config: Config) -> pathlib.Path:
    """The artifact, with the global adapters among its blobs."""
    return config.out / "artifact"


def received_folder(config: Config) -> pathlib.Path:
    """The deltas that devices sent."""
    return config.out / "received"


def participant_folder(config: Config) -> pathlib.Path:
    """This machine as a device: its configuration, store and log."""
    return config.out / "participant"


def trust_folder(config: Config) -> pathlib.Path:
    """The coordinator's key, and the keys of its devices."""
    return config.trust.folder or config.out / "trust"


def policies_folder(config: Config) -> pathlib.Path:
    """The policies that decided, where any was tuned in the run: each by the SHA-256 of its file."""
    return config.out / "policies"


def ledger_path(config: Config) -> pathlib.Path:
    """The ledger."""
    return config.out / "ledger.sqlite"
