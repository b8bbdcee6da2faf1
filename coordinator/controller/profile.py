"""What a policy is trained on: a ladder's measured costs, and how a model learns from it. A JSON file.

    {"steps": 20, "adapter_bytes": ..., "codecs": ["fp32", "int8"], "curve": {...}, "source": "...",
     "levels": [{"name": "int8", "needs_bytes": ..., "step_s": ..., "quality": ..., "upload_bytes": {"fp32": ...}}],
     "parts": [{"levels": ["int8", "int8-half"], "bytes": ...}]}

`parts` say what levels are made of: bytes that exactly those levels have in common. `fedpeat ladder` writes the levels,
`fedpeat controller calibrate` the curve; what is shipped is `default_profile.json`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from coordinator.controller import learning
from coordinator.controller.learning import Curve
from coordinator.errors import ConfigError
from coordinator.policy.types import Level
from edge_sdk.wire.messages import DeltaCodec

DEFAULT: Final = pathlib.Path(__file__).with_name("default_profile.json")
MAX_LEVELS: Final = 64
CODECS: Final = (DeltaCodec.FP32, DeltaCodec.FP16, DeltaCodec.INT8, DeltaCodec.INT4)  # that need no residuals


@dataclass(frozen=True, slots=True)
class Profile:
    """Levels best first; `steps` of a task; `adapter_bytes` that each device gets in each round. `source` says from
    where the numbers are.
    """

    levels: tuple[Level, ...]
    curve: Curve
    steps: int
    adapter_bytes: int
    codecs: tuple[DeltaCodec, ...]
    source: str = ""


def load_profile(path: pathlib.Path = DEFAULT) -> Profile:
    """Read `path`. Raises ConfigError with one line."""
    try:
        plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} is no profile: {error}"
        raise ConfigError(msg) from error
    try:
        return from_plain(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        msg = f"{path} is no profile: {what}"
        raise ConfigError(msg) from error


def from_plain(plain: Mapping[str, Any]) -> Profile:
    """From JSON. Raises KeyError, TypeError, ValueError, AttributeError for what is none."""
    files: dict[str, dict[str, int]] = {one["name"]: {} for one in plain["levels"]}
    if not 0 < len(files) <= MAX_LEVELS or len(files) < len(plain["levels"]):
        msg = f"there must be 1 to {MAX_LEVELS} levels, each with a name of its own"
        raise ValueError(msg)
    for k, part in enumerate(plain["parts"]):
        for name in part["levels"]:
            files[name][f"part-{k}"] = _positive("bytes", int(part["bytes"]))
    levels = tuple(
        Level(
            name=one["name"],
            needs_bytes=_positive("needs_bytes", int(one["needs_bytes"])),
            size_bytes=sum(files[one["name"]].values()),
            upload_bytes={DeltaCodec(codec): int(size) for codec, size in one["upload_bytes"].items()},
            files=files[one["name"]],
            step_s=_positive("step_s", float(one["step_s"])),
            quality=float(one["quality"]),
        )
        for one in plain["levels"]
    )
    codecs = tuple(DeltaCodec(name) for name in plain["codecs"])
    for level in levels:
        if lacking := [codec.value for codec in codecs if codec not in level.upload_bytes]:
            msg = f"level {level.name} has no upload_bytes for {', '.join(lacking)}"
            raise ValueError(msg)
    return Profile(
        levels,
        learning.from_plain(plain["curve"]),
        _positive("steps", int(plain["steps"])),
        int(plain["adapter_bytes"]),
        codecs,
        str(plain.get("source", "")),
    )


def as_plain(profile: Profile) -> dict[str, Any]:
    """For JSON."""
    names: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for level in profile.levels:
        for file, size in level.files.items():
            names.setdefault(file, []).append(level.name)
            sizes[file] = size
    parts: dict[tuple[str, ...], int] = {}
    for file, levels in names.items():
        parts[tuple(levels)] = parts.get(tuple(levels), 0) + sizes[file]
    return {
        "source": profile.source,
        "steps": profile.steps,
        "adapter_bytes": profile.adapter_bytes,
        "codecs": [codec.value for codec in profile.codecs],
        "levels": [
            {
                "name": level.name,
                "needs_bytes": level.needs_bytes,
                "step_s": level.step_s,
                "quality": level.quality,
                "upload_bytes": {codec.value: size for codec, size in level.upload_bytes.items()},
            }
            for level in profile.levels
        ],
        "parts": [{"levels": list(levels), "bytes": size} for levels, size in parts.items()],
        "curve": learning.as_plain(profile.curve),
    }


def _positive(name: str, value: float) -> Any:  # noqa: ANN401 - what it was given
    if not 0 < value < float("inf"):
        msg = f"{name} is {value}, it must be more than 0"
        raise ValueError(msg)
    return value
