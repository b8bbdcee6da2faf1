"""What the controller is worth, beside every other policy, in fleets that it never saw.

    python -m benchmarks.controller [--quick] [--check] [--also FILE ...]

Policies play the same simulated fleets, from seeds that training never uses, around the measured costs of
`coordinator.controller`'s default_profile.json; the reward is `coordinator.controller.reward`'s default. A seed's value
is the mean over its fleets; what is told is the mean over five seeds, with its 95 % interval.

- scenarios: 8 devices, twenty rounds, one that is stationary and seven in which something changes;
- scale: 256 devices, where training saw at most 16; and how long a decision takes for 1,000;
- room: what an oracle that sees the future finds in fleets of four, beside the controller and the best other: how much
  there is to be had at all;
- training seeds: the policies of `--also`, which were trained like the controller with other seeds, in its scenarios;
- cases: FedPEAT's three, plain federated learning, LoRA without emulators, and emulators, the last by each controller;

What its parts are worth: `python -m benchmarks.controller_ablations`.

`--check` exits 1 unless the controller beats every baseline in the stationary scenario, and by a tenth in all others;
beats greedy on 256; decides for 1,000 devices within 50 ms; and was trained within 20 minutes. Writes
benchmarks/results/controller.json and .png, with --quick controller-quick.*, and docs/results/controller.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from benchmarks import machine
from benchmarks.controller_page import (
    CONTROLLER,
    DEVICES,
    FEW,
    JUDGED,
    MANY,
    MOST,
    ORACLE,
    best_other,
    page,
    plot,
)
from coordinator.controller.baselines import BASELINES, GREEDY
from coordinator.controller.compare import Cell, Make, compare, line
from coordinator.controller.evaluation import average, mean_of, play
from coordinator.controller.fleets import SCENARIOS
from coordinator.controller.oracle import search
from coordinator.controller.profile import Profile, load_profile
from coordinator.controller.reward import Weights
from coordinator.controller.simulator import World, begin, observe
from coordinator.controller.worlds import JUDGING, world
from coordinator.policy.learned import DEFAULT, Learned, load_policy
from edge_sdk.wire.messages import DeltaCodec

ROOT: Final = pathlib.Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results" / "controller.md"
SEEDS, FLEETS, QUICK_SEEDS, QUICK_FLEETS = 5, 8, 2, 2
MARGIN: Final = 1.1
DECIDE_MS, TRAIN_S = 50.0, 20 * 60.0
ROOM_SEEDS, QUICK_ROOM_SEEDS = 3, 1
DECISIONS: Final = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two seeds of two fleets, and files of their own")
    parser.add_argument("--check", action="store_true", help="exit 1 unless what is claimed holds")
    parser.add_argument("--policy", type=pathlib.Path, default=DEFAULT, help="the controller's file")
    parser.add_argument("--also", type=pathlib.Path, nargs="*", default=[], help="policies of other training seeds")
    asked = parser.parse_args(arguments)
    profile, learned = load_profile(), load_policy(asked.policy)
    others = [load_policy(path) for path in asked.also]
    seeds, fleets = (QUICK_SEEDS, QUICK_FLEETS) if asked.quick else (SEEDS, FLEETS)
    makes = {CONTROLLER: lambda one: for_world(learned, one), **BASELINES}
    cells = compare(profile, makes, Weights(), DEVICES, range(seeds), tuple(SCENARIOS), fleets=fleets, say=told)
    many = compare(
        profile,
        {name: makes[name] for name in (CONTROLLER, GREEDY, "kkt")},
        Weights(),
        MANY,
        range(seeds),
        JUDGED,
        fleets=1,
        say=told,
    )
    found = {
        "machine": machine.machine(),
        "profile": profile.source,
        "curve_error": profile.curve.error,
        "card": dict(learned.card),
        "seeds": seeds,
        "fleets": fleets,
        "scenarios": [plain(cell) for cell in cells],
        "scale": [plain(cell) for cell in many],
        "room": room(
            profile, makes, QUICK_ROOM_SEEDS if asked.quick else ROOM_SEEDS, JUDGED if asked.quick else tuple(SCENARIOS)
        ),
        "trained": trained([learned, *others], profile, seeds, fleets) if others else {},
        "cases": cases(profile, makes, seeds, fleets),
        "decide_ms": decide_ms(profile, learned),
    }
    name = "controller-quick" if asked.quick else "controller"
    machine.write_json(RESULTS / f"{name}.json", found)
    plot(found, RESULTS / f"{name}.png")
    if not asked.quick:
        PAGE.write_text(page(found, complaints(found)), encoding="utf-8")
    print(f"a decision for {MOST} devices takes {found['decide_ms']:.1f} ms")
    broken = complaints(found)
    for complaint in broken:
        print(f"FAIL {complaint}")
    return int(asked.check and bool(broken))


def for_world(learned: Learned, one: World) -> Learned:
    """The controller knows what the analytic policy knows of how the model learns, see `baselines.kkt_for`."""
    return dataclasses.replace(learned, people_power=one.profile.curve.people_power)


def told(text: str) -> None:
    """A line at once: the whole takes minutes."""
    print(text, flush=True)


def plain(cell: Cell) -> dict[str, Any]:
    """For JSON."""
    return {**dataclasses.asdict(cell), "says": line(cell)}


def room(
    profile: Profile, makes: Mapping[str, Make], seeds: int, scenarios: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Mean rewards by scenario, of every policy and of the oracle, in one fleet of a few devices for each seed.

    The oracle goes on from its best round alone: what it finds can be had, and more may be.
    """
    found = {}
    for scenario in scenarios:
        worlds = [
            world(profile, FEW, SCENARIOS[scenario], (JUDGING, seed, 0, FEW), varied=seed % 2 > 0)
            for seed in range(seeds)
        ]
        rewards = {
            name: statistics.fmean(play(one, make(one), Weights()).reward for one in worlds)
            for name, make in makes.items()
        }
        rewards[ORACLE] = statistics.fmean(search(one, Weights(), one.rounds, beam=1).reward for one in worlds)
        found[scenario] = rewards
        ours, best = rewards[CONTROLLER], best_other(rewards)
        told(
            f"{scenario:12} of {FEW}: {CONTROLLER} {ours:.3f}, {best} {rewards[best]:.3f}, oracle {rewards[ORACLE]:.3f}"
        )
    return found


def trained(policies: Sequence[Learned], profile: Profile, seeds: int, fleets: int) -> dict[str, dict[str, float]]:
    """By scenario the mean over training seeds, half of its interval, and the least and most of them."""
    makes: dict[str, Make] = {
        f"seed {policy.seed}": lambda one, policy=policy: for_world(policy, one)  # type: ignore[misc]
        for policy in policies
    }
    cells = compare(profile, makes, Weights(), DEVICES, range(seeds), tuple(SCENARIOS), fleets=fleets, say=told)
    found = {}
    for scenario in SCENARIOS:
        values = [cell.reward.mean for cell in cells if cell.scenario == scenario]
        found[scenario] = {**dataclasses.asdict(mean_of(values)), "least": min(values), "most": max(values)}
    return found


def decide_ms(profile: Profile, policy: Learned) -> float:
    """The median time of a decision for many devices, in milliseconds, in the middle of a run."""
    one = world(profile, MOST, SCENARIOS["everything"], (JUDGING, 0, MOST))
    state, memory = begin(one), policy.initial()
    seen, took_s = observe(one, state), []
    for _ in range(DECISIONS):
        begun_s = time.perf_counter()
        policy.decide(seen, memory)
        took_s.append(time.perf_counter() - begun_s)
    return 1000 * statistics.median(took_s)


def plain_federated(profile: Profile) -> Profile:
    """FedPEAT's third case: all weights are trained, go down and come up in every round; there are no emulators, and
    memory is no object, which flatters it.
    """
    whole = profile.levels[0]
    size = whole.size_bytes
    level = dataclasses.replace(whole, upload_bytes=dict.fromkeys(DeltaCodec, size), needs_bytes=1)
    return dataclasses.replace(profile, levels=(level,), adapter_bytes=size, codecs=(DeltaCodec.FP32,))


def without_emulators(profile: Profile) -> Profile:
    """FedPEAT's second case: an adapter, and the whole model on every device."""
    return dataclasses.replace(profile, levels=profile.levels[:1])


def cases(profile: Profile, makes: Mapping[str, Callable[..., Any]], seeds: int, fleets: int) -> list[dict[str, Any]]:
    """FedPEAT's figure 5 in our terms: delay, exchanges, perplexity of its three cases, and of controllers."""
    rows = []
    played = {
        "FL": (plain_federated(profile), "largest-that-fits"),
        "PEFT + FL": (without_emulators(profile), "largest-that-fits"),
        **{f"FedPEAT, {name}": (profile, name) for name in (*BASELINES, CONTROLLER)},
    }
    for case, (of, name) in played.items():
        runs = [
            play(one, makes[name](one), Weights())
            for seed in range(seeds)
            for fleet in range(fleets)
            for one in (world(of, DEVICES, SCENARIOS["stationary"], (JUDGING, seed, fleet, DEVICES)),)
        ]
        figures = dataclasses.asdict(average(runs))
        rows.append({"case": case, **figures, "log_delay": float(np.log(figures["delay_s"]))})
        told(
            f"{case:28} perplexity {figures['perplexity']:6.2f}  log delay {rows[-1]['log_delay']:5.2f}  "
            f"{figures['exchanges']:5.1f} exchanges  {figures['bytes'] / 1e9:7.2f} GB"
        )
    return rows


def complaints(found: Mapping[str, Any]) -> list[str]:
    """What is claimed, and does not hold."""
    said = []
    for scenario in SCENARIOS:
        rewards = {
            cell["policy"]: cell["reward"]["mean"] for cell in found["scenarios"] if cell["scenario"] == scenario
        }
        ours = rewards.pop(CONTROLLER)
        best = max(rewards, key=lambda name: rewards[name])
        margin = 1.0 if scenario == "stationary" else MARGIN
        if not ours > rewards[best] + (margin - 1) * abs(rewards[best]):
            said.append(
                f"{scenario}: {ours:.3f} beside {best}'s {rewards[best]:.3f}, wanted {margin:.1f} times as much"
            )
    for scenario in {cell["scenario"] for cell in found["scale"]}:
        rewards = {cell["policy"]: cell["reward"]["mean"] for cell in found["scale"] if cell["scenario"] == scenario}
        if not rewards[CONTROLLER] > rewards[GREEDY]:
            said.append(
                f"{MANY} devices, {scenario}: {rewards[CONTROLLER]:.3f} beside {GREEDY}'s {rewards[GREEDY]:.3f}"
            )
    if not found["decide_ms"] <= DECIDE_MS:
        said.append(f"a decision for {MOST} devices took {found['decide_ms']:.0f} ms, {DECIDE_MS:.0f} are allowed")
    if not found["card"].get("wall_s", TRAIN_S + 1) <= TRAIN_S:
        said.append(f"training took {found['card'].get('wall_s', 'an unknown time')} s, {TRAIN_S:.0f} are allowed")
    return said


if __name__ == "__main__":
    sys.exit(main())
