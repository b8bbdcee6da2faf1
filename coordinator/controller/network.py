"""The set encoder in torch, for training: MaskablePPO's policy whose network is shared by all devices.

It has the arrays of `coordinator.policy.encoder`, under the same names, and a critic beside them that only training
needs. What a branch beside the level's says counts where the device takes part, and nowhere else: a device that sits
out has no codec, so that neither its probability nor its entropy is one of the action's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from coordinator.controller.environment import SLOTS, WIDTHS
from coordinator.policy.actions import LEVEL
from coordinator.policy.arrays import Floats32
from coordinator.policy.encoder import SHAPES, WIDTH
from coordinator.policy.features import OF_FLEET

Seen: TypeAlias = Tensor | dict[str, Tensor]  # as the library has it; ours are always the latter
Allowed: TypeAlias = NDArray[np.bool_] | Tensor | None

NEVER: Final = -1e8
_CRITIC: Final = {
    "value.0": (2 * WIDTH + len(OF_FLEET), WIDTH),
    "value.0.bias": (WIDTH,),
    "value.1": (WIDTH, 1),
    "value.1.bias": (1,),
}


class SetEncoder(nn.Module):
    """Scores of all branches, and the value, of a batch of padded fleets."""

    def __init__(self) -> None:
        """Orthogonal weights, as PPO's authors use them; nearly no preference at first."""
        super().__init__()
        self._arrays = nn.ParameterDict()
        for name, shape in {**SHAPES, **_CRITIC}.items():
            array = torch.zeros(shape)
            if len(shape) > 1:
                last = name in {"pair.score", "out", "codec", "share", "power"}
                nn.init.orthogonal_(array, gain=0.01 if last else math.sqrt(2))
            self._arrays[name.replace(".", "_")] = nn.Parameter(array)

    def __getitem__(self, name: str) -> Tensor:
        """An array by its name in the file."""
        array: Tensor = self._arrays[name.replace(".", "_")]
        return array

    def arrays(self) -> dict[str, Floats32]:
        """What `coordinator.policy.learned` needs."""
        return {name: self[name].detach().cpu().numpy().astype(np.float32) for name in SHAPES}

    def critic(self) -> list[Tensor]:
        """What says the value, and nothing else."""
        return [self[name] for name in _CRITIC]

    def take(self, arrays: Mapping[str, Floats32]) -> None:
        """Go on from these."""
        with torch.no_grad():
            for name, array in arrays.items():
                self[name].copy_(torch.from_numpy(array))

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Scores (B, SLOTS, sum of WIDTHS), and values (B, 1)."""
        if isinstance(seen, Tensor):
            msg = "an observation is a dict of tensors"
            raise TypeError(msg)
        here = seen["here"][..., None]  # B, N, 1
        count = here.shape[1]
        fleet = seen["fleet"][:, None, :].expand(-1, count, -1)
        alone = torch.relu(self._linear("device.0", torch.cat([seen["devices"], fleet], dim=-1)))
        alone = torch.relu(self._linear("device.1", alone)) * here
        mean = alone.sum(dim=1) / here.sum(dim=1).clamp(min=1)
        pooled = torch.cat([mean, alone.amax(dim=1)], dim=-1)  # values are 0 or more, so that places not taken are none
        beside = torch.cat([alone, pooled[:, None, :].expand(-1, count, -1), fleet], dim=-1)
        context = torch.relu(self._linear("context", beside))
        pairs = (context @ self["pair.device"])[:, :, None, :] + seen["pairs"] @ self["pair.level"] + self["pair.bias"]
        of_levels = (torch.relu(pairs) @ self["pair.score"])[..., 0]
        branches = [self._linear("out", context), of_levels]
        branches += [self._linear(name, context) for name in ("codec", "share", "power")]
        critic = torch.relu(self._linear("value.0", torch.cat([pooled, seen["fleet"]], dim=-1)))
        return torch.cat(branches, dim=-1), self._linear("value.1", critic)

    def _linear(self, name: str, inputs: Tensor) -> Tensor:
        return inputs @ self[name] + self[f"{name}.bias"]


class Branches:
    """The distribution of actions (B, SLOTS x 4), of masked scores."""

    def __init__(self, scores: Tensor, allowed: Allowed) -> None:
        """`allowed` (B, SLOTS x sum of WIDTHS) is what may be chosen; None: everything."""
        if allowed is not None:
            may = torch.as_tensor(np.asarray(allowed), dtype=torch.bool).reshape(scores.shape)
            scores = torch.where(may, scores, torch.tensor(NEVER))
        self._logs = [part.log_softmax(dim=-1) for part in scores.split(list(WIDTHS), dim=-1)]

    def sample(self, *, likeliest: bool) -> Tensor:
        """Actions, (B, SLOTS x 4)."""
        drawn = [
            logs.argmax(dim=-1) if likeliest else (logs - torch.empty_like(logs).exponential_().log()).argmax(dim=-1)
            for logs in self._logs
        ]
        return torch.stack(drawn, dim=-1).flatten(1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Of whole actions, (B,)."""
        chosen = actions.long().reshape(len(actions), SLOTS, len(WIDTHS))
        logs = torch.stack(
            [part.gather(-1, chosen[..., k : k + 1])[..., 0] for k, part in enumerate(self._logs)], dim=-1
        )
        takes_part = (chosen[..., LEVEL] > 0).float()
        return (logs[..., 0] + takes_part * logs[..., 1:].sum(dim=-1)).sum(dim=-1)

    def entropy(self) -> Tensor:
        """A device's in the mean, (B,): what is worth exploring does not grow with the fleet."""
        each = torch.stack([-(part.exp() * part.clamp(min=-50)).sum(dim=-1) for part in self._logs], dim=-1)
        takes_part = 1 - self._logs[LEVEL][..., 0].exp()
        of_device: Tensor = each[..., 0] + takes_part * each[..., 1:].sum(dim=-1)
        return of_device.mean(dim=-1)


class SetPolicy(MaskableActorCriticPolicy):
    """MaskablePPO's actor and critic around one `SetEncoder`."""

    def _build(self, lr_schedule: Schedule) -> None:
        """In place of the layers that the library would make."""
        self.encoder = SetEncoder()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def forward(
        self,
        obs: Seen,
        deterministic: bool = False,
        action_masks: Allowed = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values, and the actions' log probabilities."""
        scores, values = self.encoder(obs)
        branches = Branches(scores, action_masks)
        actions = branches.sample(likeliest=deterministic)
        return actions, values, branches.log_prob(actions)

    def evaluate_actions(
        self, obs: Seen, actions: Tensor, action_masks: Allowed = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log probabilities and entropies of actions that were taken."""
        scores, values = self.encoder(obs)
        branches = Branches(scores, action_masks)
        return values, branches.log_prob(actions), branches.entropy()

    def predict_values(self, obs: Seen) -> Tensor:
        """Values alone."""
        found: Tensor = self.encoder(obs)[1]
        return found

    def _predict(
        self,
        observation: Seen,
        deterministic: bool = False,
        action_masks: Allowed = None,
    ) -> Tensor:
        return Branches(self.encoder(observation)[0], action_masks).sample(likeliest=deterministic)
