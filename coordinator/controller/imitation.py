"""Where training begins: the network does what an analytic policy does, and knows what that is worth.

PPO then starts from a good policy, in place of one that gives every device anything, and its critic from that policy's
returns, so that its first steps do not lead away from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from coordinator.controller.compare import Make
from coordinator.controller.environment import FleetEnv, Observed
from coordinator.controller.network import Branches, SetEncoder

RATE: Final = 1e-3
BATCH: Final = 256
VALUE: Final = 0.5  # weight of the critic's loss


@dataclass(frozen=True, slots=True)
class Example:
    """What was seen, what could be chosen and was, and what came of it: the discounted return."""

    seen: Observed
    allowed: np.ndarray[Any, np.dtype[np.bool_]]
    action: np.ndarray[Any, np.dtype[np.int64]]
    worth: float


def shown(env: FleetEnv, make: Make, episodes: int, discount: float) -> list[Example]:
    """Whole runs of the teacher that is made for each of the worlds that the environment draws."""
    found: list[Example] = []
    for _ in range(episodes):
        seen, _ = env.reset()
        teacher = make(env.world)
        memory, run, over = teacher.initial(), list[Example](), False
        while not over:
            decision, memory = teacher.decide(env.observation, memory)
            action, allowed = env.action_of(decision), env.action_masks()
            following, reward, over, _, _ = env.step(action)
            run.append(Example(seen, allowed, action, reward))
            seen = following
        worth = 0.0
        for k in reversed(range(len(run))):
            worth = run[k].worth + discount * worth
            run[k] = dataclasses.replace(run[k], worth=worth)
        found.extend(run)
    return found


def imitate(
    encoder: SetEncoder, examples: list[Example], epochs: int, say: Callable[[str], None], *, act: bool = True
) -> None:
    """Teach the encoder what the examples show: likelihood of the actions, and squared error of their worth.

    Unless it is to `act` like them, only the critic learns: of a network that made the examples itself.
    """
    seen = {name: torch.from_numpy(np.stack([e.seen[name] for e in examples])) for name in examples[0].seen}
    allowed = torch.from_numpy(np.stack([e.allowed for e in examples]))
    actions = torch.from_numpy(np.stack([e.action for e in examples]))
    worth = torch.tensor([[e.worth] for e in examples], dtype=torch.float32)
    optimizer = torch.optim.Adam(encoder.parameters() if act else encoder.critic(), lr=RATE)
    for epoch in range(epochs):
        lost = []
        for rows in torch.randperm(len(examples)).split(BATCH):
            loss = _loss(encoder, {n: a[rows] for n, a in seen.items()}, allowed[rows], actions[rows], worth[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lost.append(loss.item())
        say(f"{'imitation' if act else 'critic'}, epoch {epoch + 1} of {epochs}: loss {np.mean(lost):.3f}")


def _loss(encoder: SetEncoder, seen: dict[str, Tensor], allowed: Tensor, actions: Tensor, worth: Tensor) -> Tensor:
    scores, values = encoder(seen)
    here = seen["here"].sum(dim=-1).clamp(min=1)
    likely = Branches(scores, allowed).log_prob(actions) / here
    loss: Tensor = VALUE * (values - worth).square().mean() - likely.mean()
    return loss
