"""What a delta's codec costs in bytes and in quality, on a problem that is small enough to be played in seconds.

    python -m benchmarks.codecs [--real [--seeds N] [--check]]

Five devices fit a linear map of rank 8, as LoRA, to inputs from a space of 8 dimensions, with a little noise, and to
targets that differ by device: AdamW on the device, the device's codecs and the coordinator's aggregation. Each codec is
played under both rules and with all that could be done about its error: residuals, rounding by chance, or nothing. What
is told is the share of the targets' variance that is not explained after the last round, a mean of the seeds; not every
combination is one that a configuration allows. Writes benchmarks/results/codecs.json.

With --real the question is asked of MiniLM and Rotten Tomatoes: the coordinator and four agents in this process,
reviews dealt out by Dirichlet(5), LoRA under freeze-a with residuals. What is told is the loss on test reviews after
the last round, and a delta's bytes as serialised. A seed deals out the reviews and orders them, for each codec alike.
`--check` exits 1 unless int8 is within 1 % of fp32's loss at no more than 27 % of its bytes, and fp32 lowers the loss
by five times that 1 %. Writes benchmarks/results/codecs-real.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks import fleet, reviews, studies
from benchmarks.machine import machine, write_json
from coordinator.aggregate.rules import Aggregate, Contribution, aggregate
from coordinator.config import AggregationConfig, Rule, rules_for
from coordinator.task_book import FROZEN
from edge_sdk.engine.optimizers import AdamW
from edge_sdk.feedback import compress
from edge_sdk.wire.delta import Delta, DeltaFile, Tensor, encode_delta, pack_array, unpack_array
from edge_sdk.wire.lifeline import exit_on_terminate
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.tensors import Array
from export.cache import cache_folder

RESULTS: Final = pathlib.Path(__file__).parent / "results"
WIDTH, RANK, DEVICES, ROWS, ROUNDS, STEPS, RATE = 192, 8, 5, 128, 40, 5, 0.005
SEEDS: Final = (0, 1)
RULES: Final = rules_for("lora")
REMEDIES: Final = ("residuals", "chance", "nothing")
REAL_DEVICES, REAL_ROUNDS, ALPHA, HELD_OUT = 4, 6, 5.0, 256
TRAINING: Final[Mapping[str, Any]] = {"steps": 8, "batch": 8, "tokens": 48, "learning_rate": 1e-2, "warmup_steps": 2}
REAL_CODECS: Final = tuple(how for how in DeltaCodec if how is not DeltaCodec.FP16)  # which lies between fp32 and int8
LEVEL: Final = {"name": "fp32", "bits": 32}
MOST_LOSS, MOST_BYTES, LEAST_LEARNED = 0.01, 0.27, 0.05
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


@dataclass(frozen=True, slots=True)
class RealOutcome:
    """One run of the fleet: `delta_bytes` of one device in one round, as serialised."""

    codec: str
    seed: int
    delta_bytes: int
    points: tuple[fleet.Point, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all of them; the exit status."""
    exit_on_terminate()
    description = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=description)
    parser.add_argument("--real", action="store_true", help="a real model, MiniLM on Rotten Tomatoes")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of --real (default: 3)")
    parser.add_argument("--check", action="store_true", help="with --real: exit 1 unless int8 is as good as fp32")
    asked = parser.parse_args(arguments)
    if asked.real:
        broken = real(range(asked.seeds))
        return int(asked.check and bool(broken))
    outcomes = [outcome(rule, how, remedy) for rule in RULES for how in DeltaCodec for remedy in REMEDIES]
    show(outcomes)
    write_json(RESULTS / "codecs.json", {"machine": machine(), "runs": [dataclasses.asdict(one) for one in outcomes]})
    return 0


def real(seeds: Sequence[int]) -> list[str]:
    """Play every codec on the real model; what is not as it should be."""
    request = studies.request_of(reviews.model(), reviews.LORA, [LEVEL], TRAINING["tokens"], parity=False)
    engine = fleet.Engine(studies.newest("codecs", request))
    effort = {"training": TRAINING, "devices": REAL_DEVICES, "alpha": ALPHA, "held_out": HELD_OUT}
    outcomes = []
    for seed in seeds:
        for how in REAL_CODECS:
            outcomes.append(one := play_real(how, seed, engine))
            losses = " to ".join(f"{point.loss:.4f}" for point in one.points)
            print(f"seed {seed} {one.codec}: {one.delta_bytes:,} bytes, loss {losses}", flush=True)
            runs = [dataclasses.asdict(one) for one in outcomes]  # kept run by run, for it takes long
            write_json(RESULTS / "codecs-real.json", {"machine": machine(), "effort": effort, "runs": runs})
    engine.close()
    show_real(outcomes)
    broken = complaints(outcomes)
    for complaint in broken:
        print(f"FAIL {complaint}")
    return broken


def play_real(how: DeltaCodec, seed: int, engine: fleet.Engine) -> RealOutcome:
    """One run, from the dealing out to the last test."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = pathlib.Path(name)
        members = reviews.deal(REAL_DEVICES, ALPHA, seed, folder / "data")
        run = fleet.play(real_table(how, seed), members, engine, folder)
        test = reviews.held_out(HELD_OUT, TRAINING["tokens"], folder)
        points = fleet.curve(run, engine, test, REAL_ROUNDS)
    delta_bytes = statistics.mean(row.size_bytes for row in run.history.results)
    return RealOutcome(how.value, seed, round(delta_bytes), points)


def real_table(how: DeltaCodec, seed: int) -> dict[str, Any]:
    """`coordinator.toml` as tables."""
    everyone = {"devices": REAL_DEVICES, "min_devices": REAL_DEVICES, "quorum": REAL_DEVICES}
    return {
        "name": f"codecs-{how.value}-{seed}",
        "model": reviews.model(),
        "adapter": reviews.LORA,
        "levels": [LEVEL],
        "rounds": {"count": REAL_ROUNDS, **everyone, "deadline_s": 36_000},
        "training": {**TRAINING, "seed": seed, "delta_codec": how.value},
        "aggregation": {"rule": Rule.FREEZE_A.value},
    }


def show_real(outcomes: Sequence[RealOutcome]) -> None:
    """A line for each codec: bytes, and losses and accuracies, means of the seeds."""
    print(f"{'':10}{'bytes':>10}{'share':>8}{'loss':>9}{'to fp32':>9}{'accuracy':>10}")
    exact = of_codec(outcomes, DeltaCodec.FP32)
    for how in REAL_CODECS:
        same = of_codec(outcomes, how)
        share, ratio = same[0].delta_bytes / exact[0].delta_bytes, last_loss(same) / last_loss(exact) - 1
        accuracy = statistics.mean(one.points[-1].accuracy for one in same)
        figures = f"{same[0].delta_bytes:10,}{share:8.1%}{last_loss(same):9.4f}{ratio:+9.2%}{accuracy:10.3f}"
        print(f"{how.value:10}{figures}")


def of_codec(outcomes: Sequence[RealOutcome], how: DeltaCodec) -> list[RealOutcome]:
    """Its runs, which differ in nothing but the seed."""
    return [one for one in outcomes if one.codec == how.value]


def last_loss(outcomes: Sequence[RealOutcome]) -> float:
    """After the last round, a mean."""
    return statistics.mean(one.points[-1].loss for one in outcomes)


def complaints(outcomes: Sequence[RealOutcome]) -> list[str]:
    """What `--check` does not let pass."""
    exact, coarse = of_codec(outcomes, DeltaCodec.FP32), of_codec(outcomes, DeltaCodec.INT8)
    begun = statistics.mean(one.points[0].loss for one in exact)
    found = {
        "int8 is more than 1 % above fp32's loss": last_loss(coarse) > (1 + MOST_LOSS) * last_loss(exact),
        "int8 takes more than 27 % of fp32's bytes": coarse[0].delta_bytes > MOST_BYTES * exact[0].delta_bytes,
        "fp32 learns too little to tell": last_loss(exact) > (1 - LEAST_LEARNED) * begun,
    }
    return [complaint for complaint, applies in found.items() if applies]


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
        result = aggregate(AggregationConfig(rule=rule), adapter, contributions, {})
        assert isinstance(result, Aggregate)
        adapter = dict(result.adapter)
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
