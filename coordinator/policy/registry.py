"""The policy that a configuration names."""

from __future__ import annotations

from coordinator.config import PolicyConfig, PolicyName
from coordinator.policy.caff import Caff
from coordinator.policy.fitting import Known
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Policy


def policy_of(config: PolicyConfig) -> Policy[Known]:
    """The policy, with its settings."""
    if config.name is PolicyName.CAFF:
        return Caff(config.max_upload_bytes, config.max_task_s)
    return LargestThatFits()
