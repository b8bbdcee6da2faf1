"""How a step is executed inside a budget: chosen before training, from the manifest's measured costs. Pure.

A plan is a point in

    micro_batch      rows that walk together; a step of more rows walks several times and adds gradients up
    head_rows        positions whose logits are in memory at once
    kept_blocks      the last so many blocks keep activations, in `kept_bits`, and make no product twice on the way back
    resident         the last so many segments keep their weights mapped; the others map them anew at each visit
    state_bits       of the optimizer's moments
    back_bits        32, or 8: products on the way back are made in integers, and gradients are off by what the
                     manifest says. Considered where the caller allows it, for speed alone: a step that would not fit
                     with exact gradients is declined

and the predicted peak of a step of b rows of S tokens is

    process          the worker with everything loaded, and what a step takes beyond its parts (both measured)
  + adapter state    every value, and the optimizer's moments of what trains
  + mapped           the weights of what is resident, and of the largest segment that is not
  + images           a batch of them, and the next one, whose last is being stretched
  + shelf            inputs of what is walked back, activations kept, masks, gradients
  + turn             hidden states where the loss over a vocabulary turns round
  + arena            the graph that needs most while it runs (measured), for the loss over a vocabulary with the
                     softmaxes of `head_rows` positions; and the arena's own notes

and 2.5 MB more, by which two equal processes differ, and 8 %, or 2 % where the plan was rehearsed. The arena's first
region is twice as large as what is expected to lie in it: what is left of a smaller one fits best, and is taken before
what was freed (all of it was touched, measured); and between measured lengths more may be needed.

What a graph costs at other shapes than those measured, `edge_sdk.wire.costs` says. What this device measured later
corrects a prediction: the ratio of measured to predicted peak, as `correction`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edge_sdk.errors import OverBudget
from edge_sdk.wire.costs import MOST_HEAD_ROWS, PROCESS, SLICE_ROWS, Costs, loss_runs
from edge_sdk.wire.manifest import Cost, Keeping, Manifest, Structure

HEAD_ROWS = (MOST_HEAD_ROWS, 128, 64, 32)
FLOAT_BYTES = 4
STATE_BITS = (32, 8)
EXACT, INTEGERS = 32, 8  # bits of the products on the way back
WORTH = 0.9  # integers must make a step a tenth faster: exact gradients are not given up for noise
UPDATE_MS = {32: 2.7e-6, 8: 8.6e-6}  # AdamW's time a number (one million, measured), clipping apart
MARGIN, REHEARSED = 1.08, 1.02  # what allocators add, and what is not as expected before a rehearsal
VARIES_BYTES = 2_500_000  # two equal processes differ so much
REGION = 2  # times what the arena is expected to take
IMAGES = 2  # batches of images at a time: while the loss is measured, the next is made before the last is dropped
STRETCHED = 8  # bytes a byte of the image that is being stretched, in float32 before it and after it
ARENA_NOTES = 1 / 32  # onnxruntime's arena writes down 8 bytes for each 256 of a region, touched or not


Way = tuple[int, int, bool, bool, int, int]  # see `way_of`
NONE_REHEARSED: Mapping[Way, int] = {}


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step is done, see the module; `arena_bytes`, of its first region, and `peak_bytes` and `step_ms`, of the
    whole step, are predictions.
    """

    micro_batch: int
    head_rows: int
    kept_blocks: int = 0
    kept_bits: int = 32
    resident: int = 0
    state_bits: int = 32
    back_bits: int = EXACT
    arena_bytes: int = 0
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step has to fit: rows and tokens of a step, the budget in bytes, threads, and what the device has learnt.

    `correction` is the ratio of measured to predicted peaks so far, `storage` where the weights are read from.
    Gradients are exact unless `integers` may be used. `arenas` are the arena's bytes by the ways that were rehearsed.
    """

    batch: int
    tokens: int
    budget_bytes: int
    threads: int
    correction: float = 1.0
    storage: Storage = FAST_STORAGE
    integers: bool = False
    arenas: Mapping[Way, int] = dataclasses.field(default_factory=dict)


def planned(manifest: Manifest, limits: Limits) -> Plan:
    """The fastest plan within the limits. Raises OverBudget with what the leanest needs."""
    step = (limits.batch, limits.tokens, limits.budget_bytes)
    plan = choose_plan(
        manifest,
        *step,
        limits.correction,
        limits.storage,
        integers=limits.integers,
        arenas=limits.arenas,
    )
    if isinstance(plan, Declined):
        raise OverBudget(plan.needed_bytes, limits.budget_bytes, "needed by the leanest plan")
    return plan


def choose_plan(
    manifest: Manifest,
    batch: int,
    tokens: int,
    budget_bytes: int,
    correction: float = 1.0,
    storage: Storage = FAST_STORAGE,
    *,
    integers: bool = False,
    arenas: Mapping[Way, int] = NONE_REHEARSED,
) -> Plan | Declined:
    """The fastest plan whose predicted peak fits; of equally fast ones the most exact, and of those the leanest.

    With `integers` gradients need not be exact, where that makes the step faster by a tenth.
    """
    room_bytes = budget_bytes / correction
    everything = list(plans(manifest, batch, tokens, room_bytes, storage, integers=integers, arenas=arenas))
    fitting = [plan for plan in everything if plan.peak_bytes * correction <= budget_bytes]
    exact = [plan for plan in fitting if plan.back_bits == EXACT]
    if not exact:
        needed_bytes = min(plan.peak_bytes for plan in everything if plan.back_bits == EXACT)
        return Declined(math.ceil(needed_bytes * correction), budget_bytes)
    fastest, fastest_exact = min(fitting, key=_by_time), min(exact, key=_by_time)
    chosen = fastest if fastest.step_ms <= WORTH * fastest_exact.step_ms else fastest_exact
    return corrected(chosen, correction)


def leanest(plans: Iterable[Plan]) -> Plan:
    """The plan with the smallest peak; of equally lean ones the fastest."""
    return min(plans, key=lambda plan: (plan.peak_bytes, plan.step_ms))


def frontier(plans: Iterable[Plan]) -> list[Plan]:
    """Of many plans those that would be chosen as the budget grows: faster, or more exact, than all leaner ones."""
    found: list[Plan] = []
    for plan in sorted(set(plans), key=lambda plan: (plan.peak_bytes, _by_time(plan))):
        if not found or _by_time(plan) < _by_time(found[-1]):
            found.append(plan)
    return found


def plans(
    manifest: Manifest,
    batch: int,
    tokens: int,
    budget_bytes: float = math.inf,
    storage: Storage = FAST_STORAGE,
    *,
    integers: bool = False,
    arenas: Mapping[Way, int] = NONE_REHEARSED,
) -> Iterator[Plan]:
    """Every plan for a step of `batch` rows of `tokens` tokens that is worth a look, those in integers if allowed.

    Weights stay resident nowhere, or in as many segments as the budget has room for: more is never slower.
    """
    step = Step(manifest, batch, tokens, storage, arenas)
    micro_batches = sorted({min(1 << k, batch) for k in range(batch.bit_length() + 1)}, reverse=True)
    head_rows = HEAD_ROWS if manifest.vocabulary_loss else HEAD_ROWS[:1]
    kept = [(0, 32), *itertools.product(range(1, step.most_kept() + 1), step.kept_bits())]
    back_bits = (EXACT, INTEGERS) if integers and step.has_integers() else (EXACT,)
    for rows, positions, (blocks, bits), state_bits, back in itertools.product(
        micro_batches, head_rows, kept, STATE_BITS, back_bits
    ):
        streamed = step.predicted(Plan(rows, positions, blocks, bits, 0, state_bits, back))
        yield streamed
        if resident := step.most_resident(streamed, budget_bytes):
            yield step.predicted(dataclasses.replace(streamed, resident=resident))


def predicted(
    manifest: Manifest,
    batch: int,
    tokens: int,
    plan: Plan,
    storage: Storage = FAST_STORAGE,
    arenas: Mapping[Way, int] = NONE_REHEARSED,
) -> Plan:
    """`plan` with the peak and the time that it is expected to have for a step of that shape."""
    return Step(manifest, batch, tokens, storage, arenas).predicted(plan)


def way_of(manifest: Manifest, plan: Plan) -> Way:
    """On what the arena's size depends in a plan: rows and head rows, which graphs, and their bits."""
    keepable = [segment for segment in manifest.walked_back() if manifest.structures[segment.structure].keepings]
    kept = len(kept_segments(manifest, plan))
    return plan.micro_batch, plan.head_rows, kept > 0, kept == len(keepable), plan.kept_bits, plan.back_bits


def with_process(manifest: Manifest, rest_bytes: int) -> Manifest:
    """The manifest with what a process holds at rest here."""
    others = tuple(cost for cost in manifest.costs if cost.graph != PROCESS)
    return dataclasses.replace(manifest, costs=(Cost(PROCESS, 1, 2, rest_bytes, 0.0), *others))


def kept_segments(manifest: Manifest, plan: Plan) -> dict[str, Keeping]:
    """The segments that keep activations, by name: the last `kept_blocks` that can and are walked back."""
    found = [
        (segment.name, keeping)
        for segment in manifest.walked_back()
        for keeping in manifest.structures[segment.structure].keepings
        if keeping.bits == plan.kept_bits
    ]
    return dict(found[max(len(found) - plan.kept_blocks, 0) :])


def backward_graph(pair: Structure | Keeping, plan: Plan) -> str:
    """Which of a pair's graphs the plan walks back through: in integers only where there is such a graph."""
    return pair.backward_integers if plan.back_bits == INTEGERS and pair.backward_integers else pair.backward


def gradient_error(manifest: Manifest, plan: Plan) -> float:
    """How far integers put the plan's gradient off, as a share of its norm; 0 where it has none."""
    return manifest.integers_error if plan.back_bits == INTEGERS else 0.0


def resident_segments(manifest: Manifest, plan: Plan) -> set[str]:
    """The segments whose weights stay mapped: the last `resident`, never the embedding, of which rows are read."""
    names = [segment.name for segment in manifest.walk[1:]]
    return set(names[max(len(names) - plan.resident, 0) :])


def _by_time(plan: Plan) -> tuple[float, int, int, int, int]:
    return plan.step_ms, -plan.back_bits, -plan.kept_bits, -plan.state_bits, plan.peak_bytes


def with_margin(peak_bytes: float, margin: float = MARGIN) -> int:
    """What to count with where so much is expected."""
    return round(peak_bytes * margin) + VARIES_BYTES


def corrected(plan: Plan, correction: float) -> Plan:
    """`plan` with a peak that this device's experience has corrected."""
    return dataclasses.replace(plan, peak_bytes=math.ceil(plan.peak_bytes * correction))


@dataclass(frozen=True, slots=True)
class _Graphs:
    """Of several graphs: the memory of the one that needs most, the time of all."""

    memory_bytes: float
    time_ms: float


class Step:
    """A step of `batch` rows of `tokens` tokens: what plans for it would need. See the module."""

    def __init__(
        self,
        manifest: Manifest,
        batch: int,
        tokens: int,
        storage: Storage = FAST_STORAGE,
        arenas: Mapping[Way, int] = NONE_REHEARSED,
    ) -> None:
        """Read the costs, and what does not depend on the plan."""
        from edge_sdk.engine.moments import moment_bytes  # NumPy comes with it, and an idle agent does without

        self._manifest, self._batch, self._tokens, self._storage = manifest, batch, tokens, storage
        self._arenas, self._taken_bytes = arenas, max(arenas.values(), default=0)
        self._costs = Costs(manifest.costs)
        self._walked_back = manifest.walked_back()
        self._keepable = [s for s in self._walked_back if manifest.structures[s.structure].keepings]
        # An embedding of tokens is not mapped: the rows that occur are read.
        self._weights = [manifest.files[segment.tensors].size_bytes for segment in manifest.walk[1:]]
        self._slice_bytes = _slice_bytes(manifest)
        image = manifest.model.image
        self._images_bytes = 0 if image is None else (IMAGES * batch + STRETCHED) * image.size_bytes
        self._patches_bytes = 0 if image is None else manifest.files[manifest.walk[0].tensors].size_bytes
        trained = [math.prod(shape) for shape in manifest.trained_shapes().values()]
        self._trained = sum(trained)
        self._adapter = sum(math.prod(shape) for shape in manifest.adapter_shapes().values())
        self._moments = {bits: 2 * sum(moment_bytes(n, bits) for n in trained) for bits in STATE_BITS}
        self._files_bytes = sum(blob.size_bytes for blob in manifest.files.values())
        self._found: dict[tuple[int, int, int, int], _Graphs] = {}

    def kept_bits(self) -> tuple[int, ...]:
        """In which precisions activations may be kept, the fullest first."""
        structures = {segment.structure for segment in self._keepable}
        found = {keeping.bits for name in structures for keeping in self._manifest.structures[name].keepings}
        return tuple(sorted(found, reverse=True))

    def most_kept(self) -> int:
        """How many segments could keep their activations."""
        return len(self._keepable)

    def has_integers(self) -> bool:
        """Whether anything on the way back could be multiplied in integers."""
        return any(self._manifest.structures[s.structure].backward_integers for s in self._walked_back)

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
        fixed = self._costs.process_bytes + self._state_bytes(plan) + self._mapped_bytes(plan) + self._images_bytes
        arena = self._arena_bytes(plan)
        region_bytes = with_margin(REGION * arena)
        rehearsed = bool(self._arenas) and way_of(self._manifest, plan) in self._arenas
        expected_bytes = 0.0 if rehearsed else arena + region_bytes * ARENA_NOTES
        taken_bytes = max(expected_bytes, self._taken_bytes)  # pages that were touched stay, whatever came after
        peak = fixed + self._shelf_bytes(plan) + self._turn_bytes(plan) + taken_bytes
        whole, rest = divmod(self._batch, plan.micro_batch)
        walks_ms = sum(
            self._walk_ms(plan, rows) * times for rows, times in ((plan.micro_batch, whole), (rest, 1)) if rows
        )
        step_ms = walks_ms + UPDATE_MS[plan.state_bits] * self._trained
        return dataclasses.replace(
            plan,
            arena_bytes=region_bytes,
            peak_bytes=with_margin(peak, REHEARSED if rehearsed else MARGIN),
            step_ms=step_ms,
        )

    def _state_bytes(self, plan: Plan) -> int:
        return FLOAT_BYTES * self._adapter + self._moments[plan.state_bits]

    def _mapped_bytes(self, plan: Plan) -> int:
        streamed = len(self._weights) - plan.resident
        visited = max([self._slice_bytes, self._patches_bytes, *self._weights[:streamed]])
        return sum(self._weights[streamed:]) + visited

    def _shelf_bytes(self, plan: Plan) -> float:
        """What outlives a run: inputs, activations, what passes by, and gradients, of former walks as well."""
        keepings = kept_segments(self._manifest, plan)
        activations = sum(
            (keeping.floats * self._tokens + keeping.row_floats) * keeping.bits // 8 for keeping in keepings.values()
        )
        passing = 3  # the last output, what flows back, and what flows below the lowest segment that keeps
        inputs = FLOAT_BYTES * self._manifest.model.width * (len(self._walked_back) + passing)
        gradients = FLOAT_BYTES * self._trained * (2 if plan.micro_batch < self._batch else 1)
        shared = self._costs.memory_bytes(self._manifest.context, plan.micro_batch, self._tokens)
        return plan.micro_batch * (self._tokens * inputs + activations) + gradients + shared

    def _turn_bytes(self, plan: Plan) -> int:
        """All that predicts, its gradient, and that in the batch's shape; and a chunk at work."""
        if self._manifest.vocabulary_loss is None:
            return 0
        positions = plan.micro_batch * self._tokens
        return FLOAT_BYTES * self._manifest.model.width * (3 * positions + 4 * min(positions, plan.head_rows))

    def _arena_bytes(self, plan: Plan) -> float:
        """The graph that needs most while it runs."""
        return max(self._graphs(plan, plan.micro_batch).memory_bytes, self._loss_bytes(plan))

    def _loss_bytes(self, plan: Plan) -> float:
        """The loss over classes, or, over a vocabulary, the softmaxes of a chunk and a slice at work."""
        manifest = self._manifest
        if manifest.classes_loss is not None:
            return self._costs.memory_bytes(manifest.classes_loss.step, plan.micro_batch, self._tokens)
        rows = min(plan.micro_batch * self._tokens, plan.head_rows)
        softmaxes = rows * manifest.model.vocabulary * FLOAT_BYTES
        return softmaxes + max(self._costs.memory_bytes(graph, rows, 1) for graph in self._products())

    def _walk_ms(self, plan: Plan, rows: int) -> float:
        """One walk of `rows` rows, there and back."""
        streamed = self._weights[: len(self._weights) - plan.resident]
        once = len(self._weights) - len(self._walked_back)  # below, nothing is visited on the way back
        visited_bytes = sum(streamed) + sum(streamed[once:])
        return self._graphs(plan, rows).time_ms + self._visit_ms(visited_bytes) + self._loss_ms(plan, rows)

    def _graphs(self, plan: Plan, rows: int) -> _Graphs:
        """What lies between the ids and the loss, there and back; looked up, for many plans differ elsewhere."""
        key = (rows, plan.kept_blocks, plan.kept_bits, plan.back_bits)
        if key not in self._found:
            kept, back = kept_segments(self._manifest, plan), {segment.name for segment in self._walked_back}
            ways = collections.Counter((s.structure, s.name in kept, s.name in back) for s in self._manifest.walk)
            found = [(self._segment(plan, rows, *way), times) for way, times in ways.items()]
            shared_bytes = self._costs.memory_bytes(self._manifest.context, rows, self._tokens)
            memory_bytes = max(shared_bytes, *(segment.memory_bytes for segment, _ in found))
            self._found[key] = _Graphs(memory_bytes, sum(segment.time_ms * times for segment, times in found))
        return self._found[key]

    def _segment(self, plan: Plan, rows: int, structure: str, keeps: bool, returns: bool) -> _Graphs:  # noqa: FBT001 - as counted
        """One segment. Fewer kept bits never count as faster than more: they are for room, not for noise."""
        whole = self._manifest.structures[structure]
        pairs = [k for k in whole.keepings if k.bits >= plan.kept_bits] if keeps else [whole]
        there = [self._graph(pair.forward, rows) for pair in pairs]
        back = [self._graph(backward_graph(pair, plan), rows) for pair in pairs] if returns else []
        exact = [self._graph(pair.backward, rows) for pair in pairs] if returns else []  # a trial of integers runs both
        return _Graphs(
            max(graph.memory_bytes for graph in (*there, *back, *exact)),
            sum(max((graph.time_ms for graph in way), default=0.0) for way in (there, back)),
        )

    def _graph(self, graph: str, rows: int) -> _Graphs:
        costs = self._costs
        return _Graphs(costs.memory_bytes(graph, rows, self._tokens), costs.time_ms(graph, rows, self._tokens))

    def _loss_ms(self, plan: Plan, rows: int) -> float:
        over_vocabulary = self._manifest.vocabulary_loss is not None
        visit_ms = self._visit_ms(self._slice_bytes) if over_vocabulary else 0.0  # classes are few, and stay
        return sum(
            run.times * (self._costs.time_ms(run.graph, run.rows, run.tokens) + visit_ms)
            for run in loss_runs(self._manifest, rows, self._tokens, plan.head_rows)
        )

    def _products(self) -> tuple[str, str]:
        loss = self._manifest.vocabulary_loss
        if loss is None:
            raise AssertionError
        return loss.project, loss.unproject

    def _visit_ms(self, size_bytes: int) -> float:
        """Mapping weights and giving them back, and reading them where the page cache does not hold all of them."""
        reads = self._files_bytes > self._storage.cache_bytes
        read_ms = size_bytes / self._storage.read_bytes_s * 1e3 if reads else 0.0
        return self._costs.pages_ms(size_bytes) + read_ms


def _slice_bytes(manifest: Manifest) -> int:
    """A slice of the vocabulary's matrix, as it is stored."""
    if manifest.vocabulary_loss is None:
        return 0
    stored = manifest.files[manifest.vocabulary_loss.tensors].size_bytes
    return stored * min(SLICE_ROWS, manifest.model.vocabulary) // manifest.model.vocabulary
