"""How a step is executed inside a budget: chosen before training, from the manifest's measured costs. Pure.

The predicted peak of a step of `batch` rows in micro-batches of b rows of S tokens is

    process                the worker with everything loaded, at rest after the shortest of steps (measured)
  + adapter state          per trained number: the value before, the value, its gradient (twice), two moments; and the
                           values that only take part forward
  + kept inputs            b * S * width * 4 for each segment that is walked back, and two more on the way
  + the largest of         each structure's growth while it runs (measured), and the vocabulary's chunk (computed)

and 3 % and 4 MB more, for what allocators add and two equal processes differ by.

A structure was measured at one and at two rows of T tokens: growth(b, S) = fixed + b * row * r, where row is the
difference of the two and r = max(S/T, (S/T)^2): attention's part is quadratic, the rest linear, so this is not short
on either side. What this device measured later corrects it: the ratio of measured to predicted peak, as `correction`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edge_sdk.wire.manifest import Cost, Direction, Manifest

PROCESS, LOSS = "process", "loss"
HEAD_ROWS = (256, 128, 64, 32)
SLICE_ROWS = 4096  # vocabulary rows per product: 9 MB dequantised at SmolLM2's width
FLOAT_BYTES = 4
STATE_FLOATS = 6  # of each trained number: value before, value, gradient, its sum, two moments
MARGIN = 1.03  # what allocators add between two equal steps
VARIES_BYTES = 4_000_000  # two equal processes differ so much: libraries' pages are mapped as the page cache has them


@dataclass(frozen=True, slots=True)
class Plan:
    """Micro-batches of `micro_batch` rows, the vocabulary's loss in chunks of `head_rows` predictions.

    `peak_bytes` and `step_ms` are predictions for the whole step.
    """

    micro_batch: int
    head_rows: int
    peak_bytes: int
    step_ms: float


@dataclass(frozen=True, slots=True)
class Declined:
    """No plan fits: the leanest would need `needed_bytes`."""

    needed_bytes: int
    budget_bytes: int


def choose_plan(
    manifest: Manifest, batch: int, tokens: int, budget_bytes: int, correction: float = 1.0
) -> Plan | Declined:
    """The fastest plan whose predicted peak fits; of equally fast ones the leanest."""
    everything = list(plans(manifest, batch, tokens, correction))
    fitting = [plan for plan in everything if plan.peak_bytes <= budget_bytes]
    if fitting:
        return min(fitting, key=lambda plan: (plan.step_ms, plan.peak_bytes))
    return Declined(min(plan.peak_bytes for plan in everything), budget_bytes)


def plans(manifest: Manifest, batch: int, tokens: int, correction: float = 1.0) -> Iterator[Plan]:
    """Every plan for a step of `batch` rows of `tokens` tokens."""
    for micro_batch in sorted({min(1 << k, batch) for k in range(batch.bit_length() + 1)}, reverse=True):
        for head_rows in HEAD_ROWS if manifest.vocabulary_loss else HEAD_ROWS[:1]:
            peak = predicted_peak_bytes(manifest, micro_batch, tokens, head_rows)
            step_ms = predicted_step_ms(manifest, batch, micro_batch, tokens, head_rows)
            yield Plan(micro_batch, head_rows, round(peak * correction), step_ms)


def predicted_peak_bytes(manifest: Manifest, micro_batch: int, tokens: int, head_rows: int) -> int:
    """See the module."""
    costs = _Costs(manifest)
    running = [costs.growth_bytes(*key, micro_batch, tokens) for key in costs.runs()]
    if manifest.vocabulary_loss:
        running.append(vocabulary_bytes(manifest, micro_batch * tokens, head_rows))
    kept = micro_batch * tokens * manifest.model.width * FLOAT_BYTES * (len(manifest.walked_back()) + 2)
    peak = costs.process_bytes() + _adapter_bytes(manifest) + kept + max(running, default=0)
    return round(peak * MARGIN) + VARIES_BYTES


def predicted_step_ms(manifest: Manifest, batch: int, micro_batch: int, tokens: int, head_rows: int) -> float:
    """Time of a step: each micro-batch walks there and back; a chunk of the head reads the whole vocabulary once
    more.
    """
    costs = _Costs(manifest)
    forward = sum(costs.time_ms(s.structure, Direction.FORWARD, micro_batch, tokens) for s in manifest.walk)
    backward = sum(costs.time_ms(s.structure, Direction.BACKWARD, micro_batch, tokens) for s in manifest.walked_back())
    loss = costs.time_ms(LOSS, Direction.BACKWARD, micro_batch, tokens)
    chunks = -(-micro_batch * tokens // head_rows) if manifest.vocabulary_loss else 1
    # Each chunk past the first maps and dequantises the vocabulary again: taken as a twentieth of one row's loss.
    again = 0.05 * (chunks - 1) * costs.time_ms(LOSS, Direction.BACKWARD, 1, manifest.reference_tokens)
    return -(-batch // micro_batch) * (forward + backward + loss + again)


def vocabulary_bytes(manifest: Manifest, predictions: int, head_rows: int) -> int:
    """Growth while the vocabulary's loss runs: logits of a chunk, one slice mapped and dequantised, the hidden rows."""
    rows, width = min(predictions, head_rows), manifest.model.width
    logits = rows * manifest.model.vocabulary * FLOAT_BYTES
    slices = SLICE_ROWS * (2 * width + rows) * FLOAT_BYTES
    return logits + slices + 5 * predictions * width * FLOAT_BYTES


def _adapter_bytes(manifest: Manifest) -> int:
    trained = sum(_size(shape) for shape in manifest.trained_shapes().values())
    everything = sum(_size(shape) for shape in manifest.adapter_shapes().values())
    return FLOAT_BYTES * (STATE_FLOATS * trained + everything)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


class _Costs:
    """The manifest's costs, by structure and direction, over one and two rows."""

    def __init__(self, manifest: Manifest) -> None:
        self._vocabulary = manifest.vocabulary_loss is not None
        self._by_key: dict[tuple[str, Direction], list[Cost]] = {}
        for cost in manifest.costs:
            self._by_key.setdefault((cost.structure, cost.direction), []).append(cost)
        for costs in self._by_key.values():
            costs.sort(key=lambda cost: cost.batch)

    def runs(self) -> Iterator[tuple[str, Direction]]:
        """All that runs in a step."""
        computed = LOSS if self._vocabulary else PROCESS
        yield from (key for key in self._by_key if key[0] not in {PROCESS, computed})

    def process_bytes(self) -> int:
        """Resident memory at rest."""
        return max((cost.peak_bytes for cost in self._by_key.get((PROCESS, Direction.LOAD), [])), default=0)

    def growth_bytes(self, structure: str, direction: Direction, batch: int, tokens: int) -> float:
        """Growth of resident memory while it runs."""
        costs = self._by_key[structure, direction]
        share = tokens / costs[0].tokens
        row = max(costs[-1].peak_bytes - costs[0].peak_bytes, 0) / max(costs[-1].batch - costs[0].batch, 1)
        fixed = max(costs[0].peak_bytes - row * costs[0].batch, 0)
        return fixed + batch * row * max(share, share * share)

    def time_ms(self, structure: str, direction: Direction, batch: int, tokens: int) -> float:
        """Time of one run; 0 for what was never measured (embedding and norm have no backward of their own)."""
        costs = self._by_key.get((structure, direction))
        if not costs:
            return 0.0
        row = max(costs[-1].time_ms - costs[0].time_ms, 0) / max(costs[-1].batch - costs[0].batch, 1)
        fixed = max(costs[0].time_ms - row * costs[0].batch, 0)
        return fixed + batch * row * tokens / costs[0].tokens
