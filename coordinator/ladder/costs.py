"""The ladder as a profile for `fedpeat controller train --profile`: its levels' measured costs and qualities.

How the model learns over rounds no ladder can tell: the curve is the shipped profile's, brought to this model's loss,
until `fedpeat controller calibrate` fits one to runs that were served.
"""

from __future__ import annotations

import dataclasses

from coordinator.builder import Artifact, BuiltLevel
from coordinator.controller.learning import Curve
from coordinator.controller.profile import CODECS, Profile, load_profile
from coordinator.ladder.publish import Ladder
from coordinator.ladder.rungs import Measured
from coordinator.policy.types import Level


def profile_of(ladder: Ladder, artifact: Artifact) -> Profile:
    """The levels worth having, best first; a step is one of the ladder's tunes, and a task has as many."""
    training, full = ladder.config.training, artifact.full.manifest
    shape = (training.batch, full.model.row_tokens(training.tokens))
    levels = [level_of(artifact.levels[one.name], shape, one, ladder.closed[one.name]) for one in ladder.rungs]
    return Profile(
        levels=tuple(reversed(levels)),
        curve=brought_to(load_profile().curve, ladder.zero_shot),
        steps=training.steps,
        adapter_bytes=full.files[full.adapter.initial].size_bytes,
        codecs=CODECS,
        source="levels: fedpeat ladder; curve: the shipped profile's, not this model's: fedpeat controller calibrate",
    )


def level_of(built: BuiltLevel, shape: tuple[int, int], measured: Measured, closed: float) -> Level:
    """As the daemon describes it to a policy, for steps of this shape, but for what was measured."""
    quality = min(max(closed, 0.0), 1.0)
    return dataclasses.replace(built.level(*shape, quality), step_s=measured.tune.step_ms / 1e3)


def brought_to(curve: Curve, first: float) -> Curve:
    """The same curve from another loss on, in nats: as large a share of it is there to gain."""
    return dataclasses.replace(curve, first=first, floor=curve.floor / curve.first * first)
