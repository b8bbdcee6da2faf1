"""What a secure sum costs: bytes on the wire and seconds of one core, for a device and for the coordinator.

    python -m benchmarks.secure_sums [--quick] [--check]

The cores of both ends, `edge_sdk.secure.member` and `coordinator.secure`, with real messages and real masks, without a
broker: 10 and 100 devices with a delta of NUMBERS numbers each, all of them there, and with a tenth that has dealt its
secrets out and then drops out. Seconds are processor time of this one process. A message counts with its signature and
envelope, the masked delta with its bytes; a plain one in fp32 is as long.

`--check` exits 1 unless each sum opens to the mean of those that are in it, within the rounding that is promised, and
what is said beside the masked delta stays below BESIDE_BYTES up and as much down for each device. Writes
benchmarks/results/secure-sums.json and docs/results/secure-sums.md; with --quick neither, of shorter deltas.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from benchmarks import machine
from coordinator.secure.graph import degree
from coordinator.secure.steps import Fact, Outcome, Record, SecureSum, Standing, Tell
from coordinator.secure.unmask import unmasked_mean
from edge_sdk.secure import member
from edge_sdk.secure.member import Member
from edge_sdk.wire.keys import Signer
from edge_sdk.wire.messages import Message, encode_message
from edge_sdk.wire.secure import ring
from edge_sdk.wire.secure.said import MaskInbox, Masking, MaskPeers
from edge_sdk.wire.secure.shamir import threshold_of
from edge_sdk.wire.signed import HEADER

T = TypeVar("T")

ROOT: Final = pathlib.Path(__file__).parent.parent
JSON, PAGE = ROOT / "benchmarks" / "results" / "secure-sums.json", ROOT / "docs" / "results" / "secure-sums.md"
NUMBERS: Final = 460_800  # LoRA of rank 8 on queries and values of SmolLM2-135M
BESIDE_BYTES: Final = 32_768
WHOLE, BOUND = 160, 4.0
SHAPE: Final = "delta"


@dataclass(slots=True)
class Costs:
    """Seconds by what they were for, and bytes by message, of one device in the mean; of the coordinator in all."""

    device_s: dict[str, list[float]] = field(default_factory=dict)
    coordinator_s: dict[str, float] = field(default_factory=dict)
    up_bytes: Counter[str] = field(default_factory=Counter)
    down_bytes: Counter[str] = field(default_factory=Counter)

    def device(self, what: str, work: Callable[[], T]) -> T:
        """Do it, as a device."""
        begin = time.process_time()
        found = work()
        self.device_s.setdefault(what, []).append(time.process_time() - begin)
        return found

    def coordinator(self, what: str, work: Callable[[], T]) -> T:
        """Do it, as the coordinator."""
        begin = time.process_time()
        found = work()
        self.coordinator_s[what] = self.coordinator_s.get(what, 0.0) + time.process_time() - begin
        return found


class Sum:
    """One secure sum of `devices`, of which the last `dropping` deal their secrets out and mask nothing."""

    def __init__(self, devices: int, dropping: int, numbers: int) -> None:
        self.masking = Masking("run.1.1", BOUND, ring.levels_for(devices), WHOLE)
        self.shapes = {SHAPE: (numbers,)}
        names = [f"device-{k:05}" for k in range(devices)]
        self.gone, self.costs = set(names[devices - dropping :]), Costs()
        self._signers = {name: Signer(k.to_bytes(32, "big")) for k, name in enumerate(names)}
        self._sum = SecureSum(1e9, 3, 0, (), 0.0)
        self.members: dict[str, Member] = {}
        self._facts: list[Fact] = []
        self._masked: dict[str, bytes] = {}
        self._true, self._weights = np.zeros(numbers), 0

    def play(self) -> float:
        """All of it; by how much of what is promised the mean is off at most."""
        self._join()
        lot = random.SystemRandom()
        for told in self._hear("graph", lambda: self._sum.begin(self.members, 0.0, lot)):
            self._answer(told)
        for told in self._hear("boxes", lambda: self._advance(set(self.members))):
            self._answer(told)
        for told in self._hear("call", lambda: self._advance(set())):
            self._answer(told)
        self._hear("call", lambda: self._advance(set()))
        standing = Standing.of(self._facts)
        blobs = [self._masked[name] for name in standing.alive]
        open_ = lambda: unmasked_mean(standing, blobs, self.shapes, self.masking)  # noqa: E731 - timed
        mean, weight = self.costs.coordinator("open", open_)
        promised = ring.rounding_error(self.masking, len(standing.alive), weight) + 2.0**-24
        return float(np.abs(mean.tensors[SHAPE] - self._true / self._weights).max()) / promised

    def _join(self) -> None:
        for name, signer in self._signers.items():
            mine = self.costs.device("keys", lambda n=name, s=signer: member.begin("run.1.1.0." + n, "run.1.1", n, s))  # type: ignore[misc]
            self.members[name] = mine
            self._up(mine.keys)
            self._hear("join", lambda n=name, s=signer, m=mine: self._sum.join(n, s.public, m.keys))  # type: ignore[misc]

    def _answer(self, told: Tell) -> None:
        name, message = told.device, told.message
        self.costs.down_bytes[type(message).__name__] += _length(message)
        mine = self.members[name]
        if isinstance(message, MaskPeers):
            self.members[name], said = self.costs.device("deal", lambda: member.deal(mine, message))
            self._up(said)
            self._hear("shares", lambda: self._sum.shared(name, said))
        elif isinstance(message, MaskInbox):
            if name not in self.gone:
                self._mask(name, message)
        else:
            self.members[name], shares = self.costs.device("reveal", lambda: member.reveal(mine, message))
            self._up(shares)
            self._hear("shares", lambda: self._sum.revealed(name, shares))

    def _mask(self, name: str, message: MaskInbox) -> None:
        lot = np.random.default_rng(int(name.rpartition("-")[2]))
        delta, weight = (
            {SHAPE: lot.normal(0, 0.01, self.shapes[SHAPE]).astype(np.float32)},
            int(lot.integers(1, WHOLE + 1)),
        )
        self._true += weight * delta[SHAPE].astype(np.float64)
        self._weights += weight
        mine, plain, out = self.members[name], io.BytesIO(), io.BytesIO()
        self.costs.device("integers", lambda: ring.write_numbers(plain, delta, weight, self.masking))
        plain.seek(0)
        self.members[name] = opened = self.costs.device("boxes", lambda: member.receive(mine, message))
        self.costs.device("mask", lambda: ring.mask_numbers(plain, out, member.masks(opened)))
        self._masked[name] = out.getvalue()

    def _advance(self, waiting: set[str]) -> Iterable[Outcome]:
        return self._sum.advance(waiting, set(self._masked), 0.0)

    def _hear(self, what: str, outcomes: Callable[[], Iterable[Outcome]]) -> list[Tell]:
        found = self.costs.coordinator(what, lambda: list(outcomes()))
        self._facts += [one.fact for one in found if isinstance(one, Record)]
        return [one for one in found if isinstance(one, Tell)]

    def _up(self, message: Message) -> None:
        self.costs.up_bytes[type(message).__name__] += _length(message)


def _length(message: Message) -> int:
    return len(encode_message(message)) + HEADER.size


def row(devices: int, dropping: int, numbers: int) -> dict[str, Any]:
    """One sum, as it is written down: bytes and seconds of a device in the mean, of the coordinator in all."""
    one = Sum(devices, dropping, numbers)
    off = one.play()
    costs = one.costs
    return {
        "devices": devices,
        "dropping": dropping,
        "numbers": numbers,
        "neighbours": degree(devices),
        "threshold": threshold_of(degree(devices)),
        "masked_bytes": ring.size_bytes(one.shapes),
        "up_bytes": {name: round(count / devices) for name, count in costs.up_bytes.items()},
        "down_bytes": {name: round(count / devices) for name, count in costs.down_bytes.items()},
        "device_s": {what: statistics.median(times) for what, times in costs.device_s.items()},
        "coordinator_s": costs.coordinator_s,
        "off": off,
    }


def complaints(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What `--check` does not let pass."""
    found = []
    for one in rows:
        what = f"{one['devices']} devices, {one['dropping']} dropping"
        if not one["off"] <= 1:
            found.append(f"{what}: the mean is off by {one['off']:.2f} times what is promised")
        beside = max(sum(one[way].values()) for way in ("up_bytes", "down_bytes"))
        if beside > BESIDE_BYTES:
            found.append(f"{what}: {beside} bytes beside the masked delta")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.secure_sums", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="shorter deltas, 10 and 30 devices; writes nothing")
    parser.add_argument("--check", action="store_true", help="exit 1 unless sums are right and what is said is short")
    asked = parser.parse_args(arguments)
    sizes, numbers = ((10, 30), 10_000) if asked.quick else ((10, 100), NUMBERS)
    rows = [row(devices, dropping, numbers) for devices in sizes for dropping in (0, devices // 10)]
    print(table(rows))
    if not asked.quick:
        machine.write_json(JSON, {"machine": machine.machine(), "rows": rows})
        PAGE.write_text(page(rows), encoding="utf-8")
    broken = complaints(rows)
    for complaint in broken:
        print(f"FAIL {complaint}")
    return int(asked.check and bool(broken))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    head = ("devices", "drop out", "neighbours", "up, kB", "beside, kB", "down, kB", "mask, s", "else, s", "open, s")
    lines = [" | ".join(head), " | ".join(["---:"] * len(head))]
    for one in rows:
        device, beside = one["device_s"], sum(one["up_bytes"].values())
        cells = (
            one["devices"],
            one["dropping"],
            f"{one['neighbours']}, {one['threshold']} needed",
            f"{one['masked_bytes'] / 1e3:.0f}",
            f"{beside / 1e3:.1f}",
            f"{sum(one['down_bytes'].values()) / 1e3:.1f}",
            f"{device['mask']:.3f}",
            f"{sum(device.values()) - device['mask']:.3f}",
            f"{one['coordinator_s']['open']:.2f}",
        )
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/results/secure-sums.md."""
    few, many, off = rows[0]["neighbours"], rows[-1]["neighbours"], max(one["off"] for one in rows)
    return f"""# What a secure sum costs

`python -m benchmarks.secure_sums --check` makes this page and
[secure-sums.json](../../benchmarks/results/secure-sums.json): a delta of {rows[0]["numbers"]:,} numbers from each
device, the cores of both ends, real messages and masks, without a broker. Bytes and seconds are of one device; `open`
is of the coordinator. One core of {machine.machine()["cpu"]}, processor time, other work beside it.

{table(rows)}

- `up`: the masked delta, as long as a plain one in fp32. `beside`: what a device says more. `down`: what it is told.
- `mask`: {few} or {many} ChaCha20 streams as long as the delta, and the device's own.
- `open`: a mask for each device is taken away, and for each that dropped out one for each of its neighbours.
- Every sum opened to the mean of the deltas in it, off by {off:.2f} at most of the rounding that is promised.

How it works, and what it does not do: [ADR 0032](../adr/0032-secure-sums.md), [robustness.md](../robustness.md).
"""


if __name__ == "__main__":
    sys.exit(main())
