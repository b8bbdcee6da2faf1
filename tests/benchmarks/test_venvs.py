"""Peers' environments: the command refuses what is none, and says what could not be made."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks.fetch import FetchError
from benchmarks.venvs import environment, main


def test_an_unknown_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The line names those that there are, and nothing is made."""
    with pytest.raises(SystemExit, match="2"):
        main(["no-such-peer"])
    assert "no peer is called no-such-peer; there are ort-training, executorch" in capsys.readouterr().err


def test_what_cannot_be_made_is_a_fetch_that_failed(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As benchmarks expect it; that it is being made was said before."""
    with pytest.raises(FetchError, match="no environment for broken"):
        environment(tmp_path, "broken", ("./no-such-package.whl",))
    assert capsys.readouterr().err == "making an environment for broken: ./no-such-package.whl\n"
