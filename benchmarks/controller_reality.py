"""What the controller's arithmetic promises of a round, against what the round took: a real daemon and eight devices.

    python -m benchmarks.controller_reality [--rounds N] [--policy NAME] [--check]

`fedpeat serve` and eight times `fedpeat-edge run`, each a process, on loopback. Every device's link goes through a
proxy of its own that lets so many bytes per second pass each way, drawn by a seed; all of them share the coordinator's
`[transfer] megabytes_s`. MiniLM learns reviews in levels of 8 and 4 bits and of half the blocks. The policy decides by
lot: who takes part, with which level, codec and share of the bandwidth, is another thing in each round.

From the second round on, each round's delay and bytes are predicted by `coordinator.policy.estimates`, which policies
reckon with, from the observation that the daemon had before it, and from the decision that it took; both are in the
ledger. Delay is from the round's opening to the last delta's commit, bytes are those of blobs, both ways. Told is the
mean absolute error as a share of what was measured, of rounds whose devices have all answered before: what a stranger
can do is a guess, and rounds with one are told apart. `--check` exits 1 where one of the two is more than 15 %.

Writes benchmarks/results/controller-reality.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks import reviews
from benchmarks.demo import broker_url, process, write_toml
from benchmarks.fleet import Member
from benchmarks.machine import machine, write_json
from benchmarks.reliability.misfortune import Misfortune
from benchmarks.reliability.proxy import FaultProxy
from coordinator.decision_log import Logged, read_decisions
from coordinator.history import opened, read_history
from coordinator.policy.estimates import Estimates
from edge_sdk.wire.lifeline import exit_on_terminate
from export.cache import cache_folder

RESULTS: Final = pathlib.Path(__file__).parent / "results"
FLEET, DEVICES, EVEN, SEED = "reality", 8, 1e4, 0
SLOWEST_BYTES_S, FASTEST_BYTES_S = 0.5e6, 3e6
MEGABYTES_S: Final = 12.0
MOST: Final = 0.15
LEVELS: Final = (
    {"name": "int8", "bits": 8},
    {"name": "int8-half", "bits": 8, "layers": 3},
    {"name": "int4", "bits": 4},
)
ADAPTER: Final = {"kind": "lora", "rank": 64, "alpha": 64, "targets": ["query", "value"]}  # 2.4 MB, to be felt
TRAINING: Final = {"steps": 4, "batch": 8, "tokens": 32, "learning_rate": 1e-3}


@dataclass(frozen=True, slots=True)
class Promise:
    """Of a round: how long it takes, and what goes over the wire."""

    delay_s: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Compared:
    """A round, as it was promised and as it was; `strangers` of its devices had never answered before."""

    round: int
    devices: int
    strangers: int
    promised: Promise
    measured: Promise


def promise(logged: Logged) -> Promise:
    """What the estimates say of a decision, from what was observed before it."""
    seen, choices = logged.observation, logged.decision.choices
    estimates = Estimates.of(seen)
    levels = {level.name: level for level in seen.levels}
    shares = sum(choice.share for choice in choices.values())
    delays, wire_bytes = [0.0], 0
    for device in seen.devices:
        if (choice := choices.get(device.name)) is None:
            continue
        level = levels[choice.level]
        delays.append(estimates.task_s(device, level, choice.codec, choice.power, choice.share / shares))
        wire_bytes += estimates.down_bytes(device, level) + estimates.up_bytes(level, choice.codec)
    return Promise(max(delays), wire_bytes)


def strangers(logged: Logged) -> int:
    """How many of those that take part never answered."""
    return sum(not device.answered for device in logged.observation.devices if device.name in logged.decision.choices)


def compared(ledger: pathlib.Path) -> list[Compared]:
    """Every round from the second on that was decided once, and in which everybody answered with a delta."""
    took = measured(ledger)
    decisions: dict[tuple[int, int], list[Logged]] = {}
    for logged in read_decisions(ledger):
        decisions.setdefault((logged.round, logged.attempt), []).append(logged)
    return [
        Compared(one.round, len(one.decision.choices), strangers(one), promise(one), took[key][0])
        for key, (one, *more) in decisions.items()
        if not more and one.round > 1 and key in took and took[key][1] == one.decision.choices.keys()
    ]


def measured(ledger: pathlib.Path) -> dict[tuple[int, int], tuple[Promise, set[str]]]:
    """Of every attempt that was aggregated, what it took, and the devices whose deltas are in it."""
    history = read_history(ledger)
    with opened(ledger) as db:
        times = {
            (round_, attempt): last - begin
            for round_, attempt, begin, last in db.execute(
                "SELECT r.round, r.attempt, r.opened_at, MAX(s.committed_at) FROM rounds r JOIN tasks t USING (round, "
                "attempt) JOIN results s USING (task_id) WHERE r.state = 'aggregated' GROUP BY r.round, r.attempt"
            )
        }
    found = {}
    for key, delay_s in times.items():
        rows = [row for row in history.results if (row.round, row.attempt) == key]
        wire_bytes = sum(row.report.down_bytes + row.report.up_bytes for row in rows)
        found[key] = (Promise(delay_s, wire_bytes), {row.device for row in rows})
    return found


def errors(rounds: Sequence[Compared]) -> dict[str, float]:
    """Mean absolute errors, as shares of what was measured."""
    pairs = [(one.promised, one.measured) for one in rounds]
    return {
        "delay": statistics.mean(abs(said.delay_s - was.delay_s) / was.delay_s for said, was in pairs),
        "bytes": statistics.mean(abs(said.bytes - was.bytes) / was.bytes for said, was in pairs),
    }


def complaints(found: Mapping[str, float]) -> list[str]:
    """What `--check` does not let pass."""
    return [f"{what} is {error:.1%} off, {MOST:.0%} is allowed" for what, error in found.items() if error > MOST]


# ---- the run


def rates() -> list[float]:
    """Bytes per second of each device's link, each way."""
    draw = random.Random(SEED)  # noqa: S311 - the same each time on purpose
    spread = FASTEST_BYTES_S / SLOWEST_BYTES_S
    return [SLOWEST_BYTES_S * spread ** draw.random() for _ in range(DEVICES)]


def serve(folder: pathlib.Path, rounds: int, policy: str) -> int:
    """The whole run; the coordinator's exit status."""
    members = reviews.deal(DEVICES, EVEN, SEED, folder / "data")
    write_toml(folder / "coordinator.toml", coordinator_table(folder, rounds, policy))
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "coordinator.cli", "serve", "--config", str(folder / "coordinator.toml")]
        coordinator = stack.enter_context(process(command, None))
        url = broker_url(folder / "coordinator" / "broker.url", coordinator)
        for number, (member, bytes_s) in enumerate(zip(members, rates(), strict=True)):
            line = Misfortune(bytes_s=bytes_s)
            proxy = stack.enter_context(FaultProxy(urlsplit(url).port or 1883, number, line, line))
            write_toml(path := folder / f"{member.name}.toml", device_table(member, folder, proxy.url))
            command = [sys.executable, "-m", "edge_sdk.cli", "run", "--config", str(path)]
            stack.enter_context(process(command, folder / f"{member.name}.log"))
        return coordinator.wait()


def coordinator_table(folder: pathlib.Path, rounds: int, policy: str) -> dict[str, Any]:
    """`coordinator.toml` as tables."""
    return {
        "name": "reality",
        "fleet": FLEET,
        "out": str(folder / "coordinator"),
        "model": reviews.model(),
        "adapter": ADAPTER,
        "levels": LEVELS,
        "rounds": {"count": rounds, "devices": DEVICES, "min_devices": DEVICES, "deadline_s": 600.0},
        "training": TRAINING,
        "transfer": {"megabytes_s": MEGABYTES_S},
        "policy": {"name": policy},
    }


def device_table(member: Member, folder: pathlib.Path, url: str) -> dict[str, Any]:
    """`device.toml` as tables."""
    return {
        "device": member.name,
        "fleet": FLEET,
        "broker": url,
        "budget": "300MB",
        "quota": "1GB",
        "store": str(folder / "stores" / member.name),
        "threads": 1,
        "data": {"kind": "csv", "path": str(member.data.path), "text_column": "text", "label_column": "label"},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare, write; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.controller_reality", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--policy", default="random", metavar="NAME", help="as in coordinator.toml (default: random)")
    parser.add_argument("--check", action="store_true", help="exit 1 where delay or bytes are more than 15 %% off")
    asked = parser.parse_args(arguments)
    exit_on_terminate()
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        if (status := serve(pathlib.Path(name), asked.rounds, asked.policy)) != 0:
            print(f"the coordinator ended with {status}", file=sys.stderr)
            return 1
        rounds = compared(pathlib.Path(name, "coordinator", "ledger.sqlite"))
    for one in rounds:
        said, was = one.promised, one.measured
        print(
            f"round {one.round}, {one.devices} devices, {one.strangers} of them strangers: "
            f"{said.delay_s:.1f} s promised, {was.delay_s:.1f} s measured; "
            f"{said.bytes / 1e6:.2f} MB promised, {was.bytes / 1e6:.2f} MB measured"
        )
    known = [one for one in rounds if not one.strangers]
    found = errors(known)
    print(
        f"off by {found['delay']:.1%} of the delay, {found['bytes']:.1%} of the bytes: {len(known)} rounds, all known"
    )
    plain = [dataclasses.asdict(one) for one in rounds]
    effort = {"policy": asked.policy, "rounds": asked.rounds, "training": TRAINING, "megabytes_s": MEGABYTES_S}
    effort |= {"links_bytes_s": [round(rate) for rate in rates()]}
    result = {"machine": machine(), "effort": effort, "error": found, "error_of_all": errors(rounds), "rounds": plain}
    write_json(RESULTS / "controller-reality.json", result)
    broken = complaints(found)
    for complaint in broken:
        print(f"FAIL {complaint}")
    return int(asked.check and bool(broken))


if __name__ == "__main__":
    sys.exit(main())
