"""What each part of the controller is worth: trained again without it, just as long, and judged in the same fleets.

    python -m benchmarks.controller_ablations [--steps 60000] [--quick]

- `as it is`: the set encoder, shared by all devices, with branches, masks and imitation;
- `its teacher`: the analytic policy that the network imitates before it is trained, by itself;
- `no imitation`: from random weights;
- `no masking`: levels that do not fit may be chosen, and fail;
- `no sharing`: one wide network over all places at once, with weights of its own for each; the library's default;
- `no branching`: one choice for the whole fleet, of levels x codecs x how many of the fastest take part, by the
  library's default network: plain PPO;
- `no store`: as it is, where whole emulators are exchanged: what content addressing is worth; and the same for the
  bandit, which tries levels, beside itself;
- `seen before`: as it is, but in every round the best of DRAWS joint decisions that it draws, by the reward that the
  round then has. No policy can know that; it bounds what devices would gain that agree with each other, as where one
  is decided after the other in the sight of those before it (auto-regressive).

Of what is trained, `--trainings` seeds are trained, and what is told is over them.

Writes benchmarks/results/controller-ablations.json, with --quick controller-ablations-quick.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks import machine
from benchmarks.controller import for_world
from benchmarks.controller_page import JUDGED
from coordinator.controller import simulator
from coordinator.controller.baselines import BASELINES
from coordinator.controller.environment import SLOTS, WIDTHS, FleetEnv
from coordinator.controller.evaluation import average, mean_of, play
from coordinator.controller.fleets import SCENARIOS
from coordinator.controller.profile import Profile, load_profile
from coordinator.controller.reward import Weights, reward
from coordinator.controller.simulator import World
from coordinator.controller.teacher import careful_for
from coordinator.controller.training import CHECKPOINT, Request, train
from coordinator.controller.worlds import JUDGING, MOST_LEVELS, around, world
from coordinator.policy.actions import CODECS, LEVEL
from coordinator.policy.learned import Learned
from edge_sdk.wire.lifeline import exit_on_terminate

RESULTS: Final = pathlib.Path(__file__).parent / "results"
DEVICES, SEEDS, FLEETS = 8, 5, 4
SHARES_OF_FLEET: Final = (0.25, 0.5, 1.0)
QUICK_STEPS: Final = 4096
DRAWS: Final = 16
BANDIT: Final = "ucb"
Judged: TypeAlias = dict[str, dict[str, float]]  # by scenario: mean, and half of its interval


class JointEnv(gymnasium.Env[dict[str, Any], np.int64]):
    """One number for the whole fleet: a level, a codec, and which share of the devices, the quickest first, has it."""

    def __init__(self, env: FleetEnv) -> None:
        """Around the environment with branches."""
        self._fleet = env
        self.observation_space = env.observation_space
        self.action_space = gymnasium.spaces.Discrete(MOST_LEVELS * len(CODECS) * len(SHARES_OF_FLEET))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        """Begin a run in another world."""
        return self._fleet.reset(seed=seed, options=options)

    def step(self, action: np.int64) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """A round."""
        return self._fleet.step(self._spread(int(action)))

    def action_masks(self) -> NDArray[np.bool_]:
        """Levels that fit anybody."""
        fits = self._fleet.action_masks().reshape(SLOTS, -1)[:, 1 : WIDTHS[LEVEL]].any(axis=0)
        allowed = np.repeat(fits, len(CODECS) * len(SHARES_OF_FLEET))
        return allowed if allowed.any() else np.ones_like(allowed)

    def _spread(self, action: int) -> NDArray[np.int64]:
        rest, share = divmod(action, len(SHARES_OF_FLEET))
        level, codec = divmod(rest, len(CODECS))
        actions = np.zeros((SLOTS, len(WIDTHS)), dtype=np.int64)
        fits = self._fleet.action_masks().reshape(SLOTS, -1)[:, 1 + level]
        places = np.flatnonzero(fits)
        if len(places):
            quickest = sorted(places, key=lambda k: self._fleet.quickness(int(k), level))
            taken = quickest[: max(1, round(SHARES_OF_FLEET[share] * len(places)))]
            actions[taken, LEVEL] = 1 + level
            actions[taken, 1] = codec
        return actions.ravel()


def judged(
    score: Callable[[World], float], profile: Profile, *, stored: bool = True, seeds: int = SEEDS
) -> dict[str, Any]:
    """Means over seeds, by scenario."""
    found = {}
    for name in JUDGED:
        values = []
        for seed in range(seeds):
            worlds = [
                world(
                    profile,
                    DEVICES,
                    SCENARIOS[name],
                    (JUDGING, seed, fleet, DEVICES),
                    varied=fleet % 2 > 0,
                    stored=stored,
                )
                for fleet in range(FLEETS)
            ]
            values.append(float(np.mean([score(one) for one in worlds])))
        found[name] = dataclasses.asdict(mean_of(values))
    return found


def of_policy(policy: Learned) -> Callable[[World], float]:
    """A run's reward."""
    return lambda one: average([play(one, for_world(policy, one), Weights())]).reward


def of_hindsight(policy: Learned) -> Callable[[World], float]:
    """The same where the best of DRAWS joint decisions is taken, of each round by itself."""

    def score(one: World) -> float:
        drawn = [for_world(dataclasses.replace(policy, seed=k), one) for k in range(DRAWS)]
        state, memory, total = simulator.begin(one), policy.initial(), 0.0
        for _ in range(one.rounds):
            seen, ways = simulator.observe(one, state), []
            for each in drawn:
                decision, known = each.decide(seen, memory)
                after, outcomes = simulator.step(one, state, decision)
                ways.append((reward(outcomes, one.scale, Weights()), after, known))
            earned, state, memory = max(ways, key=lambda way: way[0])
            total += earned
        return total

    return score


def of_baseline(name: str) -> Callable[[World], float]:
    """The same for a policy that nobody trained."""
    return lambda one: play(one, BASELINES[name](one), Weights()).reward


def of_model(model: MaskablePPO, wrap: Callable[[FleetEnv], Any], *, masked: bool = True) -> Callable[[World], float]:
    """The same for a network that only the environment can ask."""

    def score(one: World) -> float:
        env = wrap(FleetEnv(lambda _rng: one, masked=masked))
        seen, _ = env.reset(seed=0)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(seen, action_masks=env.action_masks())
            seen, reward, over, _, _ = env.step(action)
            total += float(reward)
        return total

    return score


def library(wrap: Callable[[FleetEnv], Any], request: Request, profile: Profile) -> MaskablePPO:
    """PPO with the library's own network."""

    def place(k: int) -> Callable[[], Monitor[Any, Any]]:
        def make() -> Monitor[Any, Any]:
            env = wrap(FleetEnv(profile=profile))
            env.reset(seed=1000 * request.seed + k)
            return Monitor(env)

        return make

    model = MaskablePPO(
        "MultiInputPolicy",
        DummyVecEnv([place(k) for k in range(request.places)]),
        learning_rate=lambda left: 5e-4 * (0.1 + 0.9 * left),
        n_steps=request.rounds,
        batch_size=request.batch,
        n_epochs=request.epochs,
        gamma=request.discount,
        gae_lambda=0.9,
        ent_coef=request.entropy,
        policy_kwargs={"net_arch": [256, 256]},
        seed=request.seed,
        device="cpu",
    )
    return model.learn(request.steps)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    exit_on_terminate()
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller_ablations", description=description)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--quick", action="store_true", help="a few steps, which say nothing")
    parser.add_argument("--trainings", type=int, default=3, help="seeds of each training; default: 3")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    profile = load_profile()
    base = Request(steps=QUICK_STEPS if asked.quick else asked.steps, shown=20 if asked.quick else 400)
    seeds, trainings = (2, 1) if asked.quick else (SEEDS, asked.trainings)
    found: dict[str, list[Judged]] = {}

    def say(name: str, result: Judged) -> None:
        found.setdefault(name, []).append(result)
        print(name, {k: f"{v['mean']:.3f} ± {v['half']:.3f}" for k, v in result.items()}, flush=True)

    file = "controller-ablations-quick.json" if asked.quick else "controller-ablations.json"
    say("its teacher", judged(lambda one: play(one, careful_for(one), Weights()).reward, profile, seeds=seeds))
    for name, stored in {BANDIT: True, f"{BANDIT}, no store": False}.items():
        say(name, judged(of_baseline(BANDIT), profile, stored=stored, seeds=seeds))
    for seed in range(trainings):  # each takes minutes: what is known is written after each
        _trained(dataclasses.replace(base, seed=seed), profile, seeds, say)
        machine.write_json(
            RESULTS / file,
            {
                "machine": machine.machine(),
                "request": dataclasses.asdict(base),
                "seeds": seeds,
                "trainings": seed + 1,
                "found": {name: over(results) for name, results in found.items()},
            },
        )
    return 0


def _trained(request: Request, profile: Profile, seeds: int, say: Callable[[str, Judged], None]) -> None:
    """Train and judge each variant with this request's seed."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        for name, one in {
            "as it is": request,
            "no imitation": dataclasses.replace(request, shown=0),
            "no masking": dataclasses.replace(request, masked=False),
        }.items():
            policy = train(one, around(profile), Weights(), out / name, lambda _line: None)
            if one.masked:
                say(name, judged(of_policy(policy), profile, seeds=seeds))
            else:
                model = MaskablePPO.load(out / name / CHECKPOINT)
                say(name, judged(of_model(model, lambda env: env, masked=False), profile, seeds=seeds))
            if one is request:
                say("no store", judged(of_policy(policy), profile, stored=False, seeds=seeds))
                say("seen before", judged(of_hindsight(policy), profile, seeds=seeds))
    for name, wrap in {"no sharing": _same, "no branching": JointEnv}.items():
        say(name, judged(of_model(library(wrap, request, profile), wrap), profile, seeds=seeds))


def over(results: Sequence[Judged]) -> Judged:
    """Over training seeds where there are some, else over those of judging."""
    if len(results) == 1:
        return results[0]
    return {
        scenario: dataclasses.asdict(mean_of([result[scenario]["mean"] for result in results]))
        for scenario in results[0]
    }


def _same(env: FleetEnv) -> FleetEnv:
    return env


if __name__ == "__main__":
    sys.exit(main())
