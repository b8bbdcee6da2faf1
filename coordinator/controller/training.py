"""Trains the policy: MaskablePPO of sb3-contrib in the simulated fleets. A process of its own: it imports torch.

out/progress.csv, progress.png     what came of each update
out/checkpoint.zip                 every so often: what `resume` goes on from
out/policy.safetensors             the best so far, by its reward in worlds of another seed than those it trains in
"""

from __future__ import annotations

import csv
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from sb3_contrib import MaskablePPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from coordinator.controller.compare import Make
from coordinator.controller.environment import FleetEnv
from coordinator.controller.evaluation import average, play
from coordinator.controller.imitation import imitate, shown
from coordinator.controller.network import SetEncoder, SetPolicy
from coordinator.controller.reward import Weights
from coordinator.controller.teacher import careful_for
from coordinator.controller.trainer import POLICY
from coordinator.controller.worlds import Grounds
from coordinator.errors import ConfigError
from coordinator.policy.learned import FORMAT, MEANING, Learned, load_policy

CHECKPOINT, PROGRESS = "checkpoint.zip", "progress.csv"


@dataclass(frozen=True, slots=True)
class Request:
    """How to train. `steps` are simulated rounds; `places` how many fleets are simulated side by side."""

    steps: int = 200_000
    seed: int = 0
    places: int = 16
    rounds: int = 128  # of each place before an update
    batch: int = 256
    epochs: int = 6
    rate: float = 3e-4
    discount: float = 0.98
    entropy: float = 0.0005
    shown: int = 1200  # runs of the teacher, from which the network learns first; 0: none
    imitated: int = 12  # times
    sharp: float = 3.0  # how much more often than in training what is likely is drawn in use
    masked: bool = True


def train(
    request: Request,
    grounds: Grounds,
    weights: Weights,
    out: pathlib.Path,
    say: Callable[[str], None],
    *,
    start: Learned | None = None,
    resume: bool = False,
) -> Learned:
    """The best policy that came of it, which is in `out` too; with `resume` of what was there before, too.

    With a `start` it goes on from that one, which is among those that the best is chosen from.

    A checkpoint is the library's own format, which may run code when it is read: `resume` is for one's own alone.
    Raises OSError; PolicyFileError where there is a checkpoint to go on from, and its best policy cannot be read.
    """
    began_s = time.monotonic()
    torch.set_num_threads(1)  # the simulation takes the time, and small products gain nothing
    out.mkdir(parents=True, exist_ok=True)

    def place(k: int) -> Callable[[], Monitor[Any, Any]]:
        return lambda: Monitor(_seeded(grounds, weights, request, k))

    places = DummyVecEnv([place(k) for k in range(request.places)])
    if resume and (out / CHECKPOINT).is_file():
        model = MaskablePPO.load(out / CHECKPOINT, env=places)
    else:
        model = MaskablePPO(
            SetPolicy,
            places,
            learning_rate=lambda left: request.rate * (0.1 + 0.9 * left),
            n_steps=request.rounds,
            batch_size=request.batch,
            n_epochs=request.epochs,
            gamma=request.discount,
            gae_lambda=0.95,
            target_kl=0.05,
            ent_coef=request.entropy,
            seed=request.seed,
            device="cpu",
        )
        _begin(_encoder(model), request, grounds, weights, start, say)
    watch = _Watch(request, grounds, weights, out, say, began_s)
    if start is not None:
        watch.begin_with(model)
    if resume and (out / CHECKPOINT).is_file():
        watch.hold(load_policy(out / POLICY))
    model.learn(request.steps - model.num_timesteps, watch, reset_num_timesteps=False)
    watch.judge()
    plot_progress(out / PROGRESS, out / "progress.png")
    return watch.best


def _begin(
    encoder: SetEncoder,
    request: Request,
    grounds: Grounds,
    weights: Weights,
    start: Learned | None,
    say: Callable[[str], None],
) -> None:
    """From what the network learns by updates: `start` and what that earns, or what the teacher does."""
    if start is not None:
        encoder.take(start.arrays)
    if request.shown:
        env = _seeded(grounds, weights, request, request.places)
        teacher: Make = careful_for if start is None else lambda _world: start
        runs = shown(env, teacher, request.shown, request.discount)
        imitate(encoder, runs, request.imitated, say, act=start is None)


def _encoder(model: BaseAlgorithm) -> SetEncoder:
    """What is trained."""
    if not isinstance(model.policy, SetPolicy):
        msg = "the checkpoint is of another network"
        raise ConfigError(msg)
    return model.policy.encoder


def _seeded(grounds: Grounds, weights: Weights, request: Request, k: int) -> FleetEnv:
    env = FleetEnv(grounds.draw, weights, grounds.profile, masked=request.masked)
    env.reset(seed=1000 * request.seed + k)
    return env


class _Watch(BaseCallback):
    """Writes what came of each update; keeps the best."""

    def __init__(
        self,
        request: Request,
        grounds: Grounds,
        weights: Weights,
        out: pathlib.Path,
        say: Callable[[str], None],
        began_s: float,
    ) -> None:
        super().__init__()
        self._request, self._grounds, self._weights, self._out, self._say = request, grounds, weights, out, say
        self._began_s, self._updates = began_s, 0
        self.best = Learned({})
        self._reward = -np.inf

    def hold(self, policy: Learned) -> None:
        """What is not better than this is not written over it."""
        self.best, self._reward = policy, float(policy.card.get("reward", -np.inf))

    def begin_with(self, model: BaseAlgorithm) -> None:
        """Judge what it is before the first update."""
        self.model = model
        self.judge()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._updates += 1
        if self._updates % 10 == 1:
            self.judge()

    def judge(self) -> None:
        """Play the worlds that the best is chosen by."""
        policy = Learned(_encoder(self.model).arrays(), seed=self._request.seed, sharp=self._request.sharp)
        played = [
            (one, play(one, replace(policy, people_power=one.profile.curve.people_power), self._weights))
            for one in self._grounds.chosen_by
        ]
        found = average(run for _, run in played)
        rounds = statistics.fmean(one.rounds for one, _ in played)
        wall_s = time.monotonic() - self._began_s
        row = {"steps": self.num_timesteps, "wall_s": round(wall_s, 1), **asdict(found)}
        path = self._out / PROGRESS
        begins = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if begins:
                writer.writeheader()
            writer.writerow(row)
        self.model.save(self._out / CHECKPOINT)
        if found.reward > self._reward:
            self._reward = found.reward
            profile = self._grounds.profile
            card = {
                "trained": asdict(self._request),
                "weights": asdict(self._weights),
                "profile": profile.source,
                "steps": self.num_timesteps,
                "wall_s": round(wall_s, 1),
                "reward": found.reward,
                "gap": profile.curve.first - profile.curve.floor,
                "level_bytes": max(level.size_bytes for level in profile.levels),
                "seed": self._request.seed,
                "sharp": self._request.sharp,
                "people_power": profile.curve.people_power,
            }
            self.best = replace(policy, card=card, people_power=profile.curve.people_power)
            save(self.best, self._out / POLICY)
        each = f"{found.delay_s / rounds:.0f} s and {found.asked / rounds:.1f} devices a round"
        came_to = f"reward {found.reward:.3f}, {found.loss:.0%} of the gap left, {each}"
        self._say(f"{self.num_timesteps:>9} rounds in {wall_s:5.0f} s: {came_to}")


def plot_progress(progress: pathlib.Path, picture: pathlib.Path) -> None:
    """What came of each update. Raises OSError."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    with progress.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["steps"]) for row in rows]
    figure, axes = plt.subplots(ncols=3, figsize=(12, 3.5), layout="constrained")
    told = {"reward": "reward of a run", "delay_s": "seconds of a run", "loss": "share of the gap left"}
    for place, (name, says) in zip(axes, told.items(), strict=True):
        place.plot(steps, [float(row[name]) for row in rows])
        place.set_xlabel("simulated rounds")
        place.set_ylabel(says)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def save(policy: Learned, path: pathlib.Path) -> None:
    """Write the policy with its card. Raises OSError."""
    notes = {"format": FORMAT, "meaning": MEANING, "card": json.dumps(dict(policy.card))}
    making = path.with_name(f".{path.name}.making")
    save_file(dict(policy.arrays), making, metadata=notes)
    making.replace(path)
