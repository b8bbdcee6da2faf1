"""What a delta's codec costs in bytes and in quality, on a problem that is small enough to be played in seconds.

    python -m benchmarks.codecs

Five devices fit a linear map of rank 8, as LoRA, to inputs from a space of 8 dimensions, with a little noise, and to
targets that differ by device: AdamW on the device, the device's codecs and the coordinator's aggregation. Each codec is
played under both rules and with all that could be done about its error: residuals, rounding by chance, or nothing. What
is told is the share of the targets' variance that is not explained after the last round, a mean of the seeds; not every
combination is one that a configuration allows. Writes benchmarks/results/codecs.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.machine import machine
from coordinator.aggregate.rules import Contribution, aggregate
from coordinator.config import AggregationConfig, Rule, rules_for
from coordinator.task_book import FROZEN
from edge_sdk.engine.optimizers import AdamW
from edge_sdk.feedback import compress
from edge_sdk.wire.delta import Delta, encode_delta, pack_array, unpack_array
from edge_sdk.wire.messages import DeltaCodec, DeltaFile, Tensor
from edge_sdk.wire.tensors import Array

RESULTS: Final = pathlib.Path(__file__).parent / "results" / "codecs.json"
WIDTH, RANK, DEVICES, ROWS, ROUNDS, STEPS, RATE = 192, 8, 5, 128, 40, 5, 0.005
SEEDS: Final = (0, 1)
RULES: Final = rules_for("lora")
REMEDIES: Final = ("residuals", "chance", "nothing")
A, B = "map.lora_A", "map.lora_B"

Rows = tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`delta_bytes` of one device in one round, as serialised; `unexplained` is a share of the targets' variance."""

    rule: str
    codec: str
    remedy: str
    delta_bytes: int
    unexplained: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all of them; the exit status."""
    description = (__doc__ or "").split("\n\n")[0]
    argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=description).parse_args(arguments)
    outcomes = [outcome(rule, how, remedy) for rule in RULES for how in DeltaCodec for remedy in REMEDIES]
    show(outcomes)
    found = {
        "machine": machine(),
        "runs": [dataclasses.asdict(one) for one in outcomes],
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def outcome(rule: Rule, how: DeltaCodec, remedy: str) -> Outcome:
    """The mean over the seeds."""
    sizes, losses = zip(*(play(rule, how, remedy, seed) for seed in SEEDS), strict=True)
    return Outcome(rule.value, how.value, remedy, sizes[0], statistics.mean(losses))


def play(rule: Rule, how: DeltaCodec, remedy: str, seed: int) -> tuple[int, float]:
    """All rounds from one start: bytes of a delta, and what is left unexplained."""
    devices = problem(seed)
    start = np.random.default_rng((seed, 1)).normal(size=(RANK, WIDTH)) / np.sqrt(WIDTH)
    adapter = {A: start.astype(np.float32), B: np.zeros((WIDTH, RANK), np.float32)}
    residuals: list[dict[str, Array]] = [{} for _ in devices]
    size_bytes = 0
    for round_ in range(ROUNDS):
        contributions = []
        for k, rows in enumerate(devices):
            delta = learned(adapter, rows, FROZEN[rule])
            if remedy == "residuals":
                tensors, residuals[k] = compress(delta, residuals[k], how)
            else:
                generator = np.random.default_rng((seed, round_, k)) if remedy == "chance" else None
                tensors = {name: pack_array(array, how, generator) for name, array in delta.items()}
            size_bytes = delta_bytes(tensors)
            came = Delta({name: unpack_array(tensor) for name, tensor in tensors.items()})
            contributions.append(Contribution(came, ROWS))
        adapter = dict(aggregate(AggregationConfig(rule=rule), adapter, contributions, {}).adapter)
    return size_bytes, unexplained(adapter, devices)


def problem(seed: int) -> list[Rows]:
    """Inputs (ROWS, WIDTH) and targets of each device: a map of rank 8 that all share, and one of rank 2 of its own."""
    random = np.random.default_rng(seed)
    space = random.normal(size=(RANK, WIDTH)) / np.sqrt(RANK)

    def some_map(rank: int) -> Array:
        left, right = random.normal(size=(WIDTH, rank)), random.normal(size=(rank, WIDTH))
        return np.asarray(left @ right / np.sqrt(WIDTH * rank))

    shared, devices = some_map(RANK), []
    for _ in range(DEVICES):
        inputs = random.normal(size=(ROWS, RANK)) @ space + 0.1 * random.normal(size=(ROWS, WIDTH))
        targets = inputs @ (shared + 0.3 * some_map(2)).T
        devices.append((inputs.astype(np.float32), targets.astype(np.float32)))
    return devices


def learned(adapter: Mapping[str, Array], rows: Rows, freeze: tuple[str, ...]) -> dict[str, Array]:
    """What one device's steps change of what trains."""
    now = {name: array.copy() for name, array in adapter.items()}
    trained = {name: array for name, array in now.items() if not name.endswith(freeze)}
    optimizer = AdamW()
    state = optimizer.init(trained)
    inputs, targets = rows
    for _ in range(STEPS):
        hidden = inputs @ now[A].T
        error = (hidden @ now[B].T - targets) / ROWS
        gradients = {A: now[B].T @ error.T @ inputs, B: error.T @ hidden}
        optimizer.update(trained, {name: gradients[name] for name in trained}, state, RATE)
    return {name: array - adapter[name] for name, array in trained.items()}


def unexplained(adapter: Mapping[str, Array], devices: Sequence[Rows]) -> float:
    """The squared error over all devices, as a share of the targets' squares."""
    lost = sum(float(np.sum(np.square(x @ adapter[A].T @ adapter[B].T - y, dtype=np.float64))) for x, y in devices)
    return lost / sum(float(np.sum(np.square(y, dtype=np.float64))) for _, y in devices)


def delta_bytes(tensors: Mapping[str, Tensor]) -> int:
    """The length of the blob that a device would offer."""
    return len(encode_delta(DeltaFile("run.1.1.0.pi", 1, "pi", "0" * 64, ROWS, tensors)))


def show(outcomes: Sequence[Outcome]) -> None:
    """A line for each rule and codec: bytes, and what is left unexplained with each remedy."""
    print(f"{'':20}{'bytes':>8}{'share':>8}   unexplained with " + ", ".join(REMEDIES))
    for first in (one for one in outcomes if one.remedy == REMEDIES[0]):
        same = [one for one in outcomes if (one.rule, one.codec) == (first.rule, first.codec)]
        exact = next(one for one in outcomes if (one.rule, one.codec) == (first.rule, DeltaCodec.FP32.value))
        share = first.delta_bytes / exact.delta_bytes
        losses = "".join(f"{one.unexplained:10.4f}" for one in same)
        print(f"{first.rule:10}{first.codec:10}{first.delta_bytes:8,}{share:8.1%}{losses}")


if __name__ == "__main__":
    sys.exit(main())
