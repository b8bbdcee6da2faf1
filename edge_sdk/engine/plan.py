"""How a step is executed inside a budget: chosen before training, from the manifest's measured costs. Pure.

A plan is a point in

    micro_batch      rows that walk together; a step of more rows walks several times and adds gradients up
    head_rows        positions whose logits are in memory at once
    kept_blocks      the last so many blocks keep activations, in `kept_bits`, and make no product twice on the way back
    resident         the last so many segments keep their weights mapped; the others map them anew at each visit

and the predicted peak of a step of b rows of S tokens is

    process          the worker with everything loaded (measured)
  + adapter state    per trained number: the value before, the value, its gradient's sum, the optimizer's moments; and
                     the values that only take part forward
  + mapped           the weights of what is resident, and of the largest segment that is not
  + shelf            inputs of what is walked back, activations kept, gradients
  + arena            what flows, and the graph that needs most while it runs (measured); for the loss over a vocabulary
                     the logits of `head_rows` positions

and 3 % and 3 MB more, for what allocators add and two equal processes differ by.

A graph was measured at three shapes: (1, T), (2, T) and (1, 2T) rows and tokens. What it needs at (b, S) is taken as
c0 + c1 b S + c2 b S^2, in bytes as in time: the scores of attention are quadratic, the rest is linear. What this device
measured later corrects it: the ratio of measured to predicted peak, as `correction`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edge_sdk.wire.manifest import Cost, Keeping, Manifest

PROCESS, PAGES = "process", "pages"  # costs that are of no graph
HEAD_ROWS = (256, 128, 64, 32)
SLICE_ROWS = 4096  # vocabulary rows per product: 9 MB dequantised at SmolLM2's width
FLOAT_BYTES = 4
STATE_FLOATS = 3  # of each trained number beside its value and gradient: value before, two moments
MARGIN = 1.03  # what allocators add between two equal steps
VARIES_BYTES = 3_000_000  # two equal processes differ so much


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step is done, see the module; `peak_bytes` and `step_ms` are predictions for the whole step."""

    micro_batch: int
    head_rows: int
    kept_blocks: int = 0
    kept_bits: int = 32
    resident: int = 0
    peak_bytes: int = 0
    step_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Declined:
    """No plan fits: the leanest would need `needed_bytes`."""

    needed_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Storage:
    """Where weights are read from: `read_bytes_s` from the medium itself, `cache_bytes` the page cache may hold.

    Weights that fit the cache are read once in a task; of more, every visit reads every byte again, for the walk is a
    cycle and the cache drops what was used longest ago.
    """

    read_bytes_s: float = math.inf
    cache_bytes: float = math.inf


FAST_STORAGE = Storage()


def choose_plan(
    manifest: Manifest,
    batch: int,
    tokens: int,
    budget_bytes: int,
    correction: float = 1.0,
    storage: Storage = FAST_STORAGE,
) -> Plan | Declined:
    """The fastest plan whose predicted peak fits; of equally fast ones the leanest."""
    everything = list(plans(manifest, batch, tokens, budget_bytes / correction, storage))
    fitting = [plan for plan in everything if plan.peak_bytes * correction <= budget_bytes]
    if fitting:
        return corrected(min(fitting, key=lambda plan: (plan.step_ms, plan.peak_bytes)), correction)
    return Declined(math.ceil(min(plan.peak_bytes for plan in everything) * correction), budget_bytes)


def leanest(plans: Iterable[Plan]) -> Plan:
    """The plan with the smallest peak; of equally lean ones the fastest."""
    return min(plans, key=lambda plan: (plan.peak_bytes, plan.step_ms))


def frontier(plans: Iterable[Plan]) -> list[Plan]:
    """Of many plans those that are faster than all leaner ones, the leanest first."""
    found: list[Plan] = []
    for plan in sorted(set(plans), key=lambda plan: (plan.peak_bytes, plan.step_ms)):
        if not found or plan.step_ms < found[-1].step_ms:
            found.append(plan)
    return found


def plans(
    manifest: Manifest,
    batch: int,
    tokens: int,
    budget_bytes: float = math.inf,
    storage: Storage = FAST_STORAGE,
) -> Iterator[Plan]:
    """Every plan for a step of `batch` rows of `tokens` tokens that is worth a look.

    Weights stay resident nowhere, or in as many segments as the budget has room for: more is never slower.
    """
    step = Step(manifest, batch, tokens, storage)
    for micro_batch in sorted({min(1 << k, batch) for k in range(batch.bit_length() + 1)}, reverse=True):
        for head_rows in HEAD_ROWS if manifest.vocabulary_loss else HEAD_ROWS[:1]:
            for kept_bits in step.kept_bits():
                for kept_blocks in range(0 if kept_bits == step.kept_bits()[0] else 1, step.most_kept() + 1):
                    streamed = step.predicted(Plan(micro_batch, head_rows, kept_blocks, kept_bits))
                    yield streamed
                    resident = step.most_resident(streamed, budget_bytes)
                    if resident:
                        yield step.predicted(Plan(micro_batch, head_rows, kept_blocks, kept_bits, resident))


def predicted(manifest: Manifest, batch: int, tokens: int, plan: Plan, storage: Storage = FAST_STORAGE) -> Plan:
    """`plan` with the peak and the time that it is expected to have for a step of that shape."""
    return Step(manifest, batch, tokens, storage).predicted(plan)


def kept_segments(manifest: Manifest, plan: Plan) -> dict[str, Keeping]:
    """The segments that keep activations, by name: the last `kept_blocks` that can and are walked back."""
    found = {}
    for segment in manifest.walked_back():
        by_bits = {keeping.bits: keeping for keeping in manifest.structures[segment.structure].keepings}
        if by_bits:
            found[segment.name] = by_bits[plan.kept_bits]
    return dict(list(found.items())[max(len(found) - plan.kept_blocks, 0) :])


def resident_segments(manifest: Manifest, plan: Plan) -> set[str]:
    """The segments whose weights stay mapped: the last `resident`, never the embedding, of which rows are read."""
    names = [segment.name for segment in manifest.walk[1:]]
    return set(names[max(len(names) - plan.resident, 0) :])


def corrected(plan: Plan, correction: float) -> Plan:
    """`plan` with a peak that this device's experience has corrected."""
    return dataclasses.replace(plan, peak_bytes=math.ceil(plan.peak_bytes * correction))


class Step:
    """A step of `batch` rows of `tokens` tokens: what plans for it would need. See the module."""

    def __init__(self, manifest: Manifest, batch: int, tokens: int, storage: Storage = FAST_STORAGE) -> None:
        """Read the costs."""
        self._manifest, self._batch, self._tokens, self._storage = manifest, batch, tokens, storage
        self._costs = _Costs(manifest.costs)
        self._walked_back = manifest.walked_back()
        self._below = len(manifest.walk) - len(self._walked_back)
        # The embedding is not mapped: the rows that occur are read.
        self._weights = [manifest.files[segment.tensors].size_bytes for segment in manifest.walk[1:]]
        self._slice_bytes = _slice_bytes(manifest)

    def kept_bits(self) -> tuple[int, ...]:
        """In which precisions activations may be kept, the fullest first."""
        structures = {segment.structure for segment in self._walked_back}
        found = {keeping.bits for name in structures for keeping in self._manifest.structures[name].keepings}
        return tuple(sorted(found, reverse=True)) or (32,)

    def most_kept(self) -> int:
        """How many segments could keep their activations."""
        return sum(bool(self._manifest.structures[segment.structure].keepings) for segment in self._walked_back)

    def most_resident(self, plan: Plan, budget_bytes: float) -> int:
        """How many segments' weights could stay mapped beside `plan`, a prediction without any."""
        room, count = (budget_bytes - plan.peak_bytes) / MARGIN, 0
        for size in reversed(self._weights):
            room -= size
            if room < 0:
                break
            count += 1
        return count

    def predicted(self, plan: Plan) -> Plan:
        """`plan` with its predictions."""
        fixed = self._costs.process_bytes() + self._state_bytes() + self._mapped_bytes(plan)
        peak = fixed + self._shelf_bytes(plan) + self._arena_bytes(plan)
        whole, rest = divmod(self._batch, plan.micro_batch)
        step_ms = whole * self._walk_ms(plan, plan.micro_batch) + (self._walk_ms(plan, rest) if rest else 0.0)
        return dataclasses.replace(plan, peak_bytes=round(peak * MARGIN) + VARIES_BYTES, step_ms=step_ms)

    def _state_bytes(self) -> int:
        everything = sum(math.prod(shape) for shape in self._manifest.adapter_shapes().values())
        return FLOAT_BYTES * (STATE_FLOATS * self._trained() + everything)

    def _mapped_bytes(self, plan: Plan) -> int:
        streamed = len(self._weights) - plan.resident
        return sum(self._weights[streamed:]) + max([self._slice_bytes, *self._weights[:streamed]])

    def _shelf_bytes(self, plan: Plan) -> int:
        """What is put down between the two directions: inputs, activations, and gradients, of former walks as well."""
        keepings = kept_segments(self._manifest, plan)
        activations = sum(keeping.floats * keeping.bits // 8 for keeping in keepings.values())
        inputs = FLOAT_BYTES * self._manifest.model.width * len(self._walked_back)
        gradients = FLOAT_BYTES * self._trained() * (2 if plan.micro_batch < self._batch else 1)
        return plan.micro_batch * self._tokens * (inputs + activations) + gradients

    def _arena_bytes(self, plan: Plan) -> float:
        """What flows, and the graph that needs most while it runs."""
        rows, keepings = plan.micro_batch, kept_segments(self._manifest, plan)
        graphs = set()
        for segment in self._manifest.walk:
            graphs.add(self._manifest.structures[segment.structure].forward)
        for segment in self._walked_back:
            keeping = keepings.get(segment.name)
            structure = self._manifest.structures[segment.structure]
            graphs |= {keeping.forward, keeping.backward} if keeping else {structure.backward}
        running = max(self._costs.memory_bytes(graph, rows, self._tokens) for graph in graphs)
        hidden = FLOAT_BYTES * rows * self._tokens * self._manifest.model.width
        return 2 * hidden + max(running, self._loss_bytes(plan))

    def _trained(self) -> int:
        return sum(math.prod(shape) for shape in self._manifest.trained_shapes().values())

    def _loss_bytes(self, plan: Plan) -> float:
        """What the turn needs: for a vocabulary the logits of a chunk, a slice at work, five times the hidden state."""
        manifest, positions = self._manifest, plan.micro_batch * self._tokens
        if manifest.vocabulary_loss is None:
            return self._costs.memory_bytes(self._step_graph(), plan.micro_batch, self._tokens)
        rows, loss = min(positions, plan.head_rows), manifest.vocabulary_loss
        logits = rows * manifest.model.vocabulary * FLOAT_BYTES
        running = max(self._costs.memory_bytes(graph, rows, 1) for graph in (loss.project, loss.unproject))
        return logits + running + 5 * positions * manifest.model.width * FLOAT_BYTES

    def _step_graph(self) -> str:
        return self._manifest.classes_loss.step if self._manifest.classes_loss else ""

    def _walk_ms(self, plan: Plan, rows: int) -> float:
        """One walk of `rows` rows, there and back."""
        structures, keepings = self._manifest.structures, kept_segments(self._manifest, plan)
        resident = resident_segments(self._manifest, plan)
        total = self._loss_ms(plan, rows)
        for index, segment in enumerate(self._manifest.walk):
            structure, keeping, visits = structures[segment.structure], keepings.get(segment.name), 1
            total += self._costs.time_ms(keeping.forward if keeping else structure.forward, rows, self._tokens)
            if index >= self._below:
                total += self._costs.time_ms(keeping.backward if keeping else structure.backward, rows, self._tokens)
                visits = 2
            if index and segment.name not in resident:
                total += visits * self._visit_ms(self._weights[index - 1])
        return total

    def _loss_ms(self, plan: Plan, rows: int) -> float:
        loss = self._manifest.vocabulary_loss
        if loss is None:
            return self._costs.time_ms(self._step_graph(), rows, self._tokens)
        total, positions = 0.0, rows * self._tokens
        slices = -(-self._manifest.model.vocabulary // SLICE_ROWS)
        for begin in range(0, positions, plan.head_rows):
            chunk = min(plan.head_rows, positions - begin)
            for graph in (loss.project, loss.unproject):
                total += slices * (self._costs.time_ms(graph, chunk, 1) + self._visit_ms(self._slice_bytes))
        return total

    def _visit_ms(self, size_bytes: int) -> float:
        """Mapping weights and giving them back, and reading them where the page cache does not hold all of them."""
        everything = sum(blob.size_bytes for blob in self._manifest.files.values())
        read_ms = size_bytes / self._storage.read_bytes_s * 1e3 if everything > self._storage.cache_bytes else 0.0
        return self._costs.pages_ms(size_bytes) + read_ms


def _slice_bytes(manifest: Manifest) -> int:
    """A slice of the vocabulary's matrix, as it is stored."""
    if manifest.vocabulary_loss is None:
        return 0
    stored = manifest.files[manifest.vocabulary_loss.tensors].size_bytes
    return stored * min(SLICE_ROWS, manifest.model.vocabulary) // manifest.model.vocabulary


@dataclass(frozen=True, slots=True)
class _Line:
    """c0 + c1 b S + c2 b S^2 through what was measured; no coefficient is negative, so more is never less."""

    fixed: float = 0.0
    each: float = 0.0
    square: float = 0.0

    @staticmethod
    def through(points: dict[tuple[int, int], float]) -> _Line:
        """Points by (rows, tokens): the smallest, one with more rows, perhaps one with more tokens."""
        (rows, tokens), least = min(points.items())
        wider = max(points.items(), key=lambda point: point[0][0])
        longer = max(points.items(), key=lambda point: point[0][1])
        (more_rows, _), at_more = wider
        (_, more_tokens), at_longer = longer
        if more_rows == rows:
            return _Line(fixed=least)
        row = max(at_more - least, 0.0) / (more_rows - rows)  # c1 S + c2 S^2
        square = 0.0
        if more_tokens > tokens:
            long_row = (at_longer - least) / rows + row  # c1 S' + c2 S'^2
            square = (long_row / more_tokens - row / tokens) / (more_tokens - tokens)
        square = min(max(square, 0.0), row / tokens**2)
        each = row / tokens - square * tokens
        return _Line(max(least - rows * row, 0.0), each, square)

    def at(self, rows: int, tokens: int) -> float:
        """The value there."""
        return self.fixed + rows * tokens * (self.each + self.square * tokens)


class _Costs:
    """The manifest's costs by graph, at any shape."""

    def __init__(self, costs: Iterable[Cost]) -> None:
        by_graph: dict[str, list[Cost]] = {}
        for cost in costs:
            by_graph.setdefault(cost.graph, []).append(cost)
        self._process = max((cost.memory_bytes for cost in by_graph.pop(PROCESS, [])), default=0)
        self._pages = by_graph.pop(PAGES, [])
        self._memory = {
            g: _Line.through({(c.batch, c.tokens): c.memory_bytes for c in cs}) for g, cs in by_graph.items()
        }
        self._time = {g: _Line.through({(c.batch, c.tokens): c.time_ms for c in cs}) for g, cs in by_graph.items()}

    def process_bytes(self) -> int:
        return self._process

    def pages_ms(self, size_bytes: int) -> float:
        return sum(cost.time_ms / cost.memory_bytes for cost in self._pages if cost.memory_bytes) * size_bytes

    def memory_bytes(self, graph: str, rows: int, tokens: int) -> float:
        """Beside its inputs, outputs included; 0 for what was never measured."""
        return self._memory.get(graph, _Line()).at(rows, tokens)

    def time_ms(self, graph: str, rows: int, tokens: int) -> float:
        return self._time.get(graph, _Line()).at(rows, tokens)
