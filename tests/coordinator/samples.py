"""Small true values for the coordinator's tests: those of the device's, and what the coordinator alone has."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from coordinator.config import AggregationConfig, Config, LevelConfig, ModelConfig, Rule, TrainingConfig
from coordinator.course import RoundsConfig
from coordinator.policy.types import Answer, Outcome
from edge_sdk.wire.blobs import Blob, blob_of
from edge_sdk.wire.delta import Delta, DeltaFile, encode_delta, pack_array
from edge_sdk.wire.manifest import Manifest, TaskType
from edge_sdk.wire.messages import Hello, Presence, Report, Task
from edge_sdk.wire.tensors import Array
from tests.edge_sdk import samples

MB, WIDTH, RANK = samples.MB, samples.WIDTH, samples.RANK
BLOB = blob_of(b"")

# A configuration in few lines: one key more or less is what a test is about.
CONFIG = """
name = "demo"
fleet = "demo"
out = "out"

[model]
dir = "model"
task = "causal-lm"

[[levels]]
name = "fp32"

[[levels]]
name = "int8"
bits = 8
train_last = 6

[rounds]
count = 3
devices = 5

[training]
steps = 20
learning_rate = 1
"""


def make_manifest(name: str, trained: tuple[int, ...], needs_bytes: int, *, initial: Blob = BLOB) -> Manifest:
    """The device's, at a level that trains these layers; its files are empty, but for the adapter's starting values."""
    made = samples.make_manifest(needs_bytes)
    trains = {f"block.{k}" for k in trained}
    return dataclasses.replace(
        made,
        level=dataclasses.replace(made.level, name=name, trained_layers=trained),
        files=dict.fromkeys(made.files, BLOB) | {made.adapter.initial: initial},
        walk=tuple(dataclasses.replace(segment, trains=segment.name in trains) for segment in made.walk),
    )


def make_adapter(layers: int = 2, seed: int = 0) -> dict[str, Array]:
    """Starting values: A random, B zero."""
    random = np.random.default_rng(seed)
    adapter: dict[str, Array] = {}
    for k in range(layers):
        adapter[f"block.{k}/q.lora_A"] = random.normal(size=(RANK, WIDTH)).astype(np.float32)
        adapter[f"block.{k}/q.lora_B"] = np.zeros((WIDTH, RANK), np.float32)
    return adapter


def make_task(task_id: str = "t", *, freeze: tuple[str, ...] = ()) -> Task:
    """The device's, of three rows."""
    return samples.make_task(task_id, steps=3, batch=1, freeze=freeze)


def make_report(*, peak_bytes: int = 90 * MB) -> Report:
    """A report of a device that did well."""
    made = samples.make_report(peak_bytes)
    return dataclasses.replace(
        made, steps=3, examples=3, loss_before=3.0, loss_after=2.5, down_bytes=1000, up_bytes=500
    )


def make_answer(device: str = "a", report: Report | None = None, *, examples: int = 5) -> Answer:
    """What a delta of that report is to a policy."""
    report = report or make_report()
    measured = (report.budget_bytes, report.peak_bytes, report.wall_s)
    return Answer(device, "large", Outcome.DONE, *measured, round=1, examples=examples)


def make_hello(device: str, *, budget_bytes: int = 100 * MB, session: str = "s1", task_id: str = "") -> Hello:
    """A device that introduces itself."""
    return dataclasses.replace(samples.make_hello(budget_bytes), device=device, session=session, task_id=task_id)


def make_presence(device: str, *, online: bool, session: str = "s1") -> Presence:
    """A device that comes or goes."""
    return Presence(device, session, online)


def make_delta(shapes: dict[str, tuple[int, ...]], seed: int = 0, scale: float = 0.1) -> Delta:
    """Random changes."""
    random = np.random.default_rng(seed)
    return Delta({name: (scale * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()})


def delta_bytes(task: Task, device: str, delta: Delta, *, examples: int = 3) -> bytes:
    """The blob that an honest device offers."""
    tensors = {name: pack_array(array) for name, array in delta.tensors.items()}
    return encode_delta(DeltaFile(task.task_id, task.round, device, task.adapter.sha256, examples, tensors))


def make_config(out: pathlib.Path, *, rounds: RoundsConfig | None = None, rule: Rule = Rule.LORA_SVD) -> Config:
    """A run of two levels and two rounds."""
    return Config(
        name="test",
        fleet="test",
        out=out,
        model=ModelConfig(dir=out / "model", task=TaskType.CAUSAL_LM),
        levels=(LevelConfig(name="large"), LevelConfig(name="small", bits=8, train_last=1)),
        rounds=rounds or RoundsConfig(count=2, devices=2, wait_s=5, deadline_s=60),
        training=TrainingConfig(steps=3, tokens=8),
        aggregation=AggregationConfig(rule=rule),
    )
