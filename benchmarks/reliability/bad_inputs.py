"""A million bad inputs, and whether anybody took one, fell over one, or thought about one for too long.

    python -m benchmarks.reliability.bad_inputs SEED FIRST LAST

reads blocks FIRST to LAST, of `BLOCK` inputs each, in a process whose memory is bounded, and prints what came of them
as JSON. A block's inputs follow from the seed and its number, so any number of processes reads the same ones.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import random
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from benchmarks.machine import measured
from benchmarks.reliability.decoders import Decoder, Unsound, decoders, scratch_folder
from benchmarks.reliability.mutations import mutated
from edge_sdk.memory import read_memory

BLOCK: Final = 1000
ROOM_BYTES: Final = 64 << 20  # beside what the process has when it begins: any decoder has to do with that
SLOW_S: Final = 10.0  # one that takes longer hangs, for all that a device knows
SHOWN: Final = 20


@dataclass(slots=True)
class Outcome:
    """Inputs by what came of them. `sound` ones are true values that a change happened to leave true."""

    tried: int = 0
    refused: int = 0
    sound: int = 0
    accepted: int = 0
    crashed: int = 0
    hung: int = 0
    slowest_s: float = 0.0
    grown_bytes: int = 0
    by_decoder: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, other: Mapping[str, Any]) -> None:
        """Count what another process found."""
        for name in ("tried", "refused", "sound", "accepted", "crashed", "hung"):
            setattr(self, name, getattr(self, name) + other[name])
        self.slowest_s = max(self.slowest_s, other["slowest_s"])
        self.grown_bytes = max(self.grown_bytes, other["grown_bytes"])
        for name, count in other["by_decoder"].items():
            self.by_decoder[name] = self.by_decoder.get(name, 0) + count
        self.examples = [*self.examples, *other["examples"]][:SHOWN]

    @property
    def passed(self) -> bool:
        """Nothing was accepted, nothing crashed, nothing hung."""
        return self.tried > 0 and self.accepted == self.crashed == self.hung == 0


def read_one(decoder: Decoder, data: bytes, outcome: Outcome) -> None:
    """Give `data` to the decoder and count what it does."""
    began_s = time.perf_counter()
    outcome.tried += 1
    outcome.by_decoder[decoder.name] = outcome.by_decoder.get(decoder.name, 0) + 1
    try:
        decoder.read(data)
        outcome.sound += 1
    except decoder.refusals:
        outcome.refused += 1
    except Unsound as error:
        outcome.accepted += 1
        outcome.examples.append(f"{decoder.name}: {error}: {data[:200].hex()}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is none of those that were promised
        outcome.crashed += 1
        outcome.examples.append(f"{decoder.name}: {type(error).__name__}: {error}: {data[:200].hex()}"[:600])
    took_s = time.perf_counter() - began_s
    outcome.slowest_s = max(outcome.slowest_s, took_s)
    outcome.hung += took_s > SLOW_S


def read_blocks(seed: int, first: int, last: int, scratch: pathlib.Path) -> Outcome:
    """Read the inputs of these blocks."""
    outcome, known = Outcome(), list(decoders(scratch).values())
    shares = [decoder.share for decoder in known]
    for block in range(first, last):
        lots = random.Random(f"{seed}.{block}")  # noqa: S311 - repeatable on purpose
        for decoder in lots.choices(known, shares, k=BLOCK):
            read_one(decoder, mutated(decoder.seeds, lots), outcome)
    return outcome


def fuzz(seed: int, inputs: int, processes: int) -> Outcome:
    """So many bad inputs, over so many processes. A process that dies is a crash."""
    blocks = -(-inputs // BLOCK)
    edges = [blocks * k // processes for k in range(processes + 1)]
    outcome = Outcome()

    def one(first: int, last: int) -> dict[str, Any]:
        try:
            return measured("benchmarks.reliability.bad_inputs", str(seed), str(first), str(last))
        except RuntimeError as error:
            return asdict(Outcome(crashed=1, examples=[f"blocks {first} to {last}: {error}"]))

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        for found in pool.map(one, edges, edges[1:]):
            outcome.add(found)
    return outcome


def main() -> int:
    """Read what the command line says, within the bound on memory."""
    seed, first, last = (int(argument) for argument in sys.argv[1:])
    with scratch_folder() as folder:
        scratch = pathlib.Path(folder)
        read_blocks(seed, first, first + 1, scratch)  # what is imported and cached late is here now
        before = read_memory().peak_bytes
        held = int(pathlib.Path("/proc/self/statm").read_text("utf-8").split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + ROOM_BYTES, held + ROOM_BYTES))
        outcome = read_blocks(seed, first, last, scratch)
        outcome.grown_bytes = read_memory().peak_bytes - before
    print(json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
