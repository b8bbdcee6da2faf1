"""Small true values for the coordinator's tests: a manifest, an adapter, reports, messages."""

from __future__ import annotations

import pathlib

import numpy as np

from coordinator.config import (
    AggregationConfig,
    Config,
    LevelConfig,
    ModelConfig,
    RoundsConfig,
    Rule,
    TrainingConfig,
)
from edge_sdk.wire.blobs import Blob, blob_of
from edge_sdk.wire.delta import Delta, encode_delta, pack_array
from edge_sdk.wire.manifest import (
    AdapterSpec,
    LevelSpec,
    Manifest,
    ModelSpec,
    Segment,
    Structure,
    TaskType,
    VocabularyLoss,
)
from edge_sdk.wire.messages import (
    DeltaFile,
    Hello,
    OptimizerKind,
    Presence,
    Report,
    Schedule,
    Task,
)
from edge_sdk.wire.tensors import Array

MB = 10**6
WIDTH, RANK = 6, 2
BLOB = blob_of(b"")
ADAPTER = blob_of(b"adapter")


def make_manifest(
    name: str, trained: tuple[int, ...], needs_bytes: int, *, layers: int = 2, initial: Blob = BLOB
) -> Manifest:
    """A manifest of a model of `layers` blocks with one LoRA module each."""
    shapes = {"q.lora_A": (RANK, WIDTH), "q.lora_B": (WIDTH, RANK)}
    return Manifest(
        format=1,
        model=ModelSpec("llama", TaskType.CAUSAL_LM, layers, WIDTH, 32, (), 64),
        level=LevelSpec(name, tuple(range(layers)), trained, 32),
        adapter=AdapterSpec("lora", RANK, 4.0, ("q",), "initial"),
        files={"f": BLOB, "b": BLOB, "t": BLOB, "initial": initial},
        context="f",
        structures={"block": Structure("f", "b", (), (), shapes)},
        walk=tuple(Segment(f"block.{k}", "block", "t", k in trained) for k in range(layers)),
        vocabulary_loss=VocabularyLoss("f", "b", "t"),
        classes_loss=None,
        tokenizer="",
        reference_tokens=8,
        costs=(),
        needs_bytes=needs_bytes,
    )


def make_adapter(layers: int = 2, seed: int = 0) -> dict[str, Array]:
    """Starting values: A random, B zero."""
    random = np.random.default_rng(seed)
    adapter: dict[str, Array] = {}
    for k in range(layers):
        adapter[f"block.{k}/q.lora_A"] = random.normal(size=(RANK, WIDTH)).astype(np.float32)
        adapter[f"block.{k}/q.lora_B"] = np.zeros((WIDTH, RANK), np.float32)
    return adapter


def make_task(task_id: str = "t", *, round_: int = 1, freeze: tuple[str, ...] = ()) -> Task:
    """A task of few steps."""
    return Task(
        task_id=task_id,
        round=round_,
        artifact=BLOB,
        adapter=ADAPTER,
        steps=3,
        batch=1,
        tokens=8,
        optimizer=OptimizerKind.SGD,
        learning_rate=0.1,
        weight_decay=0.0,
        schedule=Schedule.CONSTANT,
        warmup_steps=0,
        clip_norm=0.0,
        seed=0,
        freeze=freeze,
        deadline_s=60.0,
    )


def make_report(*, peak_bytes: int = 90 * MB, budget_bytes: int = 100 * MB) -> Report:
    """A report of a device that did well."""
    return Report(3, 5, 3.0, 2.5, peak_bytes, 80 * MB, budget_bytes, 1.0, 300.0, 1000, 500, 1, "ort")


def make_hello(device: str, *, budget_bytes: int = 100 * MB, session: str = "s1", task_id: str = "") -> Hello:
    """A device that introduces itself."""
    return Hello(device, session, budget_bytes, 4, 10**9, "aarch64", "ort", "0.1.0", task_id)


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
