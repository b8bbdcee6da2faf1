"""What a configuration cannot have beside `[privacy]`, in a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.guards import Estimator, PrivacyConfig

if TYPE_CHECKING:  # it asks us
    from coordinator.config import Config


def central_complaints(config: Config, privacy: PrivacyConfig) -> dict[str, bool]:
    """Where the coordinator adds the noise."""
    aggregation = config.aggregation
    quiet = 2 * privacy.count_noise <= privacy.noise_multiplier
    return {
        f"[privacy] needs a bound on what a device adds; where both of LoRA's factors train it is none on the product: "
        f"set aggregation.rule = 'freeze-a', not {aggregation.rule.value!r}": not aggregation.rule.keeps_coordinates,
        f"[privacy] is for the mean; how far one device moves the {aggregation.estimator.value} is not bounded by its "
        "norm: leave out aggregation.estimator": aggregation.estimator is not Estimator.MEAN,
        "aggregation.clip_norm is beside privacy.clip_norm: leave it out": aggregation.clip_norm > 0,
        f"privacy.count_noise is {privacy.count_noise:g}; with a quantile and this noise_multiplier it must be more "
        f"than {privacy.noise_multiplier / 2:g}": privacy.quantile > 0 and privacy.noise_multiplier > 0 and quiet,
    }


def device_complaints(config: Config) -> dict[str, bool]:
    """Where devices do."""
    privacy = config.privacy
    return {
        "privacy.quantile is for where = 'coordinator': devices do not tell how long their gradients are": (
            config.example_noise is not None and privacy is not None and privacy.quantile > 0
        ),
        "[participant] is beside privacy.where = 'device': its public data needs no noise; leave one of them out": (
            config.example_noise is not None and config.participant is not None
        ),
        "[rollout] is beside privacy.where = 'device': devices tell no losses to try a level by; leave one out": (
            config.example_noise is not None and config.rollout is not None
        ),
    }
