"""`fedpeat controller`: what it says, and what it says of wrong input."""

from __future__ import annotations

import json
import pathlib

import pytest

from coordinator.cli import main
from coordinator.controller.fleets import SCENARIOS
from coordinator.controller.profile import as_plain, load_profile
from coordinator.controller.trainer import POLICY


def test_a_profile_survives_json(tmp_path: pathlib.Path) -> None:
    """What is written is what is read: sizes, files in common, and the curve."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(as_plain(load_profile())))
    assert as_plain(load_profile(path)) == as_plain(load_profile())
    found = {level.name: level for level in load_profile(path).levels}
    for level in load_profile().levels:
        assert found[level.name].size_bytes == level.size_bytes > 0


def test_a_policy_is_trained_and_judged(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line: a short training, then its policy beside all others in one scenario."""
    assert main(["controller", "train", "--out", str(tmp_path), "--steps", "1024", "--imitate", "2"]) == 0
    assert "the best policy is in" in capsys.readouterr().out
    judge = ["controller", "evaluate", str(tmp_path / POLICY), "--seeds", "1", "--devices", "4", "--scenario", "churn"]
    assert main(judge) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("churn") for line in lines)
    assert {"ppo", "kkt", "fastest-that-fits", "ucb", "lagrangian"} <= {line.split()[1] for line in lines}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "nothing.safetensors"], "nothing.safetensors cannot be read"),
        (["evaluate", "--scenario", "storm"], f"there is no scenario 'storm'; there are: {', '.join(SCENARIOS)}"),
        (["evaluate", "--devices", "0"], "--devices must be from 1"),
        (["evaluate", "--profile", "nothing.json"], "nothing.json is no profile"),
        (["train", "--out", "x", "--profile", "bad.json"], "bad.json is no profile: lacks 'levels'"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str],
    says: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says what is wrong, ends with 2, and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    assert main(["controller", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json"]


def test_a_weight_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    """Negative, or none: refused before anything is read."""
    for weight in ("-1", "much", "nan", "inf"):
        with pytest.raises(SystemExit) as ended:
            main(["controller", "train", "--out", "x", f"--delay={weight}"])
        assert ended.value.code == 2
        assert "is no number of 0 or more" in capsys.readouterr().err
