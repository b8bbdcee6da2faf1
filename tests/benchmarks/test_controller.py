"""What the controller's benchmark says of figures, good and bad."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from benchmarks.controller import complaints, plain_federated, without_emulators
from benchmarks.controller_ablations import JointEnv
from benchmarks.controller_page import CONTROLLER, ORACLE, page, plot
from coordinator.controller.baselines import BASELINES, GREEDY
from coordinator.controller.environment import FleetEnv
from coordinator.controller.fleets import SCENARIOS
from coordinator.controller.profile import load_profile


def found(ours: float, best: float = 1.0) -> dict[str, Any]:
    """Figures in which the controller earns `ours`, and every baseline `best` at most."""
    rewards = {CONTROLLER: ours, GREEDY: best - 0.5, "kkt": best}

    def cells(scenarios: Any) -> list[dict[str, Any]]:
        return [
            {"policy": name, "scenario": scenario, "reward": {"mean": reward, "half": 0.01}}
            for scenario in scenarios
            for name, reward in rewards.items()
        ]

    case = {"case": "FL", "perplexity": 30.0, "log_delay": 7.0, "exchanges": 8, "bytes": 1e9, "violations": 0}
    return {
        "machine": {"cpu": "a processor", "cores": 2, "python": "3.11"},
        "profile": "measured somewhere",
        "curve_error": 0.02,
        "card": {"wall_s": 600.0, "steps": 1000, "seed": 0},
        "seeds": 5,
        "fleets": 8,
        "scenarios": cells(SCENARIOS),
        "scale": cells(["stationary"]),
        "cases": [case],
        "room": {scenario: {**rewards, ORACLE: best * 1.05} for scenario in SCENARIOS},
        "trained": {scenario: {"mean": ours, "half": 0.02, "least": ours, "most": ours} for scenario in SCENARIOS},
        "decide_ms": 10.0,
    }


def test_what_holds_is_not_complained_of() -> None:
    """A tenth more than the best other, everywhere; fast enough, and trained soon enough."""
    assert complaints(found(1.11)) == []


def test_every_claim_can_fail() -> None:
    """Each by itself: a scenario, the scale, the time of a decision, that of training."""
    assert len(complaints(found(1.05))) == len(SCENARIOS) - 1, "enough where nothing changes, too little elsewhere"
    assert len(complaints(found(0.99))) == len(SCENARIOS)
    assert any("256 devices" in said for said in complaints(found(0.4)))
    slow = {**found(1.11), "decide_ms": 51.0, "card": {"wall_s": 1201.0}}
    assert ["50 are allowed" in said or "1200 are allowed" in said for said in complaints(slow)] == [True, True]


def test_a_loss_is_no_gain() -> None:
    """Where the best other earns less than nothing, a tenth better is a tenth of that nearer to nothing."""
    assert complaints({**found(-0.85, -1.0), "scale": []}) == []
    assert len(complaints({**found(-0.95, -1.0), "scale": []})) == len(SCENARIOS) - 1


def test_the_page_and_the_plot_have_every_scenario(tmp_path: pathlib.Path) -> None:
    """And say how much better the controller is than the best other."""
    text = page(found(1.11), ["nothing"])
    assert all(f"| {scenario} |" in text for scenario in SCENARIOS)
    assert text.count("+11%") == 2 * len(SCENARIOS), "in fleets of eight, and of four beside the oracle"
    assert text.count("+5%") == len(SCENARIOS)
    plot(found(1.11), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_fedpeats_cases_are_what_they_say() -> None:
    """Plain learning sends all weights both ways and asks no memory; the second case has the whole model alone."""
    profile = load_profile()
    plain = plain_federated(profile)
    assert plain.adapter_bytes == plain.levels[0].size_bytes == plain.levels[0].upload_bytes[plain.codecs[0]]
    assert [level.name for level in without_emulators(profile).levels] == [profile.levels[0].name]


def test_the_controller_is_not_its_own_baseline() -> None:
    """Nor is CAFF, which needs levels that differ in nothing but what they train."""
    assert not {CONTROLLER, "caff"} & BASELINES.keys()


@pytest.mark.parametrize("seed", [0, 1])
def test_one_choice_for_a_fleet(seed: int) -> None:
    """Plain PPO's action: those that take part all have the same level, which fits somebody."""
    env = JointEnv(FleetEnv())
    env.reset(seed=seed)
    for action in env.action_masks().nonzero()[0]:
        spread = env._spread(int(action)).reshape(-1, 4)
        levels = set(spread[spread[:, 0] > 0, 0].tolist())
        assert len(levels) == 1
