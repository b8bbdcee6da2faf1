"""A fleet whose rounds a trained policy decides: the real daemon, real devices, and the file in the package."""

from __future__ import annotations

import pathlib

import pytest

from coordinator.controller.replay import replay
from coordinator.policy.learned import load_policy
from coordinator.round_states import State
from edge_sdk.wire.transport import MemoryBroker
from tests.integration.conftest import ROUNDS, Tiny, assert_counted_once
from tests.integration.test_in_memory import Fleet


def test_a_trained_policy_decides_a_run(tmp_path: pathlib.Path, tiny: Tiny) -> None:
    """All rounds are done with the quorum that they need, and ledger and file are enough to decide them again."""
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve(policy={"name": "ppo"}, transfer={"megabytes_s": 200.0}) is State.DONE
    history = fleet.history()
    assert_counted_once(history)
    assert {row.round for row in history.results} == set(range(1, ROUNDS + 1))
    replayed = list(replay(fleet.folder / "out" / "ledger.sqlite", load_policy()))
    assert len(replayed) >= ROUNDS
    assert all(one.agrees for one in replayed)


def test_without_its_file_the_greedy_one_decides(
    tmp_path: pathlib.Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said in one line which file is wrong and who decides, and the rounds go on."""
    wrong = tmp_path / "policy.safetensors"
    wrong.write_bytes(b"no policy")
    fleet = Fleet(tmp_path, tiny, MemoryBroker())
    with fleet.device("a"), fleet.device("b"):
        assert fleet.serve(policy={"name": "ppo", "file": str(wrong)}) is State.DONE
    assert len(fleet.history().results) == 2 * ROUNDS
    decided = {one.logged.policy for one in replay(fleet.folder / "out" / "ledger.sqlite", load_policy())}
    assert decided == {"FastestThatFits"}
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot be read as a policy" in said
    assert "deciding by fastest-that-fits in its place" in said
