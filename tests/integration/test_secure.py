"""Secure sums end to end: what comes of one is what comes of the plain mean, and whoever is killed, it does."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from coordinator.config import load_config
from coordinator.history import History
from coordinator.ledger import Ledger
from coordinator.places import artifact_folder, ledger_path, trust_folder
from coordinator.registry import Registry
from coordinator.round_states import State
from coordinator.secure.steps import Standing
from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.tensors import Array, read_tensors
from edge_sdk.wire.transport import MemoryBroker
from tests.integration.conftest import Processes, Tiny, assert_counted_once, wait_until
from tests.integration.test_in_memory import Fleet

NAMES = ("a", "b", "c", "d")
TABLES: dict[str, Any] = {
    "aggregation": {"rule": "freeze-a"},
    "checks": {"norm_factor": 0},
    "rounds": {"count": 2, "devices": 4, "participants": 4, "quorum": 3, "deadline_s": 120.0, "wait_s": 60.0},
}
SECURE: dict[str, Any] = {"secure": {"step_s": 300.0}}
ONE_ROUND: dict[str, Any] = {**TABLES, "rounds": {**TABLES["rounds"], "count": 1}}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def adapters(folder: pathlib.Path, history: History) -> list[dict[str, Array]]:
    """Every version."""
    store = BlobStore(artifact_folder(load_config(folder / "coordinator.toml")))
    return [read_tensors(store.path(adapter.sha256)) for adapter in history.adapters]


def played(folder: pathlib.Path, tiny: Tiny, broker: MemoryBroker, **tables: Any) -> Fleet[MemoryBroker]:
    """A run of four devices."""
    folder.mkdir()
    fleet = Fleet(folder, tiny, broker)
    with fleet.device("a"), fleet.device("b"), fleet.device("c"), fleet.device("d"):
        assert fleet.serve(**tables) is State.DONE
    return fleet


def test_the_sum_is_that_of_the_plain_deltas(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """Two rounds over a network that loses, repeats and swaps, with masks and without: the same adapters, up to the
    rounding that is promised; and no delta in the coordinator's folder is one that a device has learned.
    """
    secure = played(
        tmp_path / "secure", tiny, MemoryBroker(seed=3, loss=0.03, duplicate=0.1, reorder=0.1), **TABLES, **SECURE
    )
    plain = played(tmp_path / "plain", tiny, MemoryBroker(), **TABLES)
    for fleet in (secure, plain):
        assert_counted_once(fleet.history(), rounds=2)
        assert len(fleet.history().results) == 8
    found, wanted = (adapters(fleet.folder, fleet.history()) for fleet in (secure, plain))
    for version in (1, 2):
        moved = max(float(np.abs(wanted[version][name] - wanted[0][name]).max()) for name in wanted[0])
        assert moved > 1e-3
        assert all(np.abs(found[version][n] - wanted[version][n]).max() < 1e-4 * moved for n in wanted[version])
    received = [{row.sha256 for row in fleet.history().results} for fleet in (secure, plain)]
    assert not received[0] & received[1]
    left = [path.suffix for name in NAMES for path in (secure.folder / f"{name}-store" / "sums").iterdir()]
    assert ".numbers" not in left


@pytest.mark.broker
def test_a_device_is_killed_after_it_delivered(processes: Processes) -> None:
    """Its masked delta is in the sum: the others' shares open its mask, and nobody waits for it to come back."""
    processes.serve(**ONE_ROUND, **SECURE)
    for name in NAMES:
        processes.device(name, crash="receipt.heard" if name == "c" else "")
    wait_until(processes.mark("c").exists, "a device has delivered, and was killed")
    assert processes.finish() == 0, processes.log("coordinator")
    assert_counted_once(processes.history(), rounds=1)
    assert {row.device for row in processes.history().results} == set(NAMES)


@pytest.mark.broker
def test_a_device_is_killed_before_it_delivers(processes: Processes) -> None:
    """It has dealt its secrets out and is revoked before its masked delta is there: the others give up its key, but not
    the seed of its own mask, and the sum is theirs.
    """
    processes.serve(**ONE_ROUND, **SECURE)
    for name in NAMES:
        processes.device(name, crash="result-kept.unsynced" if name == "c" else "")
    wait_until(processes.mark("c").exists, "a device is about to deliver, and was killed")
    config = load_config(processes.folder / "coordinator.toml")
    with Registry(trust_folder(config)) as registry:
        registry.revoke("c")  # nobody waits for it any more
    assert processes.finish() == 0, processes.log("coordinator")
    assert {row.device for row in processes.history().results} == set(NAMES) - {"c"}
    with Ledger(ledger_path(config), config.name, config.digest()) as ledger:
        standing = Standing.of(ledger.masking_of(1, 1))
    assert standing.dropped == ["c"]
    assert len(standing.key_shares("c")) >= standing.threshold("c")
    assert not standing.seed_shares("c"), "its own mask stays"


@pytest.mark.broker
@pytest.mark.parametrize("label", ["ledger.masking.committed", "aggregate.begun"])
def test_the_coordinator_is_killed_on_the_way_to_the_sum(processes: Processes, label: str) -> None:
    """At the first thing that it wrote down of the sum, and when all is there that opens it: it goes on, and whoever
    has trained is in it.
    """
    processes.serve(label, **ONE_ROUND, **SECURE)
    for name in NAMES:
        processes.device(name)
    wait_until(processes.mark("coordinator").exists, "it was killed")
    processes.running.pop("coordinator").wait()
    processes.serve(**ONE_ROUND, **SECURE)
    assert processes.finish() == 0, processes.log("coordinator")
    assert_counted_once(processes.history(), rounds=1)
    assert len(processes.history().results) == len(NAMES)
    (made,) = (row for row in processes.history().adapters if row.version == 1)
    store = BlobStore(artifact_folder(load_config(processes.folder / "coordinator.toml")))
    assert store.is_whole(Blob(made.sha256, made.size_bytes))
