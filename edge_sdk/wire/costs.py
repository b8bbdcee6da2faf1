"""What a graph costs at any shape, from what was measured at three: (1, T), (8, T) and (1, 4T) rows and tokens.

Rows cost alike, beside what is fixed. What a token costs rises with its row's length, for the scores of attention are
quadratic: in straight lines between the lengths that were measured, in bytes as in milliseconds. In short rows another
operator needs most memory than in long ones, and where they change is not known. So memory is measured at no length in
between: it would lie below the line at 2T, and soon after that above the next (a fifth too low at 5/2 T, measured).

How a device does a step within its budget, `edge_sdk.engine.plan` says; here is what a step takes with room for all.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edge_sdk.wire.manifest import Cost, Keeping, Manifest, Structure

PROCESS, TRAINING, PAGES = "process", "training", "pages"  # costs that are of no graph
SLICE_ROWS = 4096  # vocabulary rows per product: 9 MB dequantised at SmolLM2's width
MOST_HEAD_ROWS = 256  # positions whose logits are in memory at once, at most


@dataclass(frozen=True, slots=True)
class Curve:
    """`fixed` + b S u(S) for b rows of S tokens; u goes through `each` at `lengths`, and never falls: more is never
    less.
    """

    fixed: float = 0.0
    lengths: tuple[int, ...] = (1,)
    each: tuple[float, ...] = (0.0,)

    @staticmethod
    def through(points: Mapping[tuple[int, int], float]) -> Curve:
        """Through values by (rows, tokens): the smallest shape, one of more rows, any with longer rows."""
        (rows, tokens), least = min(points.items())
        more_rows, at_more = max((r, value) for (r, t), value in points.items() if t == tokens)
        row = max(at_more - least, 0.0) / max(more_rows - rows, 1)
        fixed = max(least - rows * row, 0.0)
        longer = sorted((t, value) for (r, t), value in points.items() if r == rows and t > tokens)
        each = [row / tokens, *((value - fixed) / rows / t for t, value in longer)]
        return Curve(fixed, (tokens, *(t for t, _ in longer)), tuple(itertools.accumulate(each, max)))

    def at(self, rows: int, tokens: int) -> float:
        """The value there."""
        return self.fixed + rows * tokens * self._each(tokens)

    def _each(self, tokens: int) -> float:
        lengths, each = self.lengths, self.each
        if len(lengths) == 1:
            return each[0]
        k = min(max(bisect.bisect(lengths, tokens) - 1, 0), len(lengths) - 2)  # beyond the ends the last lines go on
        slope = (each[k + 1] - each[k]) / (lengths[k + 1] - lengths[k])
        if tokens < lengths[0]:
            slope = min(slope, each[0] / lengths[0])  # to nothing at no length, not before
        return each[k] + slope * (tokens - lengths[k])


class Costs:
    """The manifest's costs by graph, at any shape."""

    def __init__(self, costs: Iterable[Cost]) -> None:
        """Fit each graph's curves. `process_bytes` is what there is beside all that is planned."""
        by_graph: dict[str, list[Cost]] = {}
        for cost in costs:
            by_graph.setdefault(cost.graph, []).append(cost)
        fixed = [cost for name in (PROCESS, TRAINING) for cost in by_graph.pop(name, [])]
        self.process_bytes = sum(cost.memory_bytes for cost in fixed)
        self._pages = by_graph.pop(PAGES, [])
        self._memory = {
            g: Curve.through({(c.batch, c.tokens): c.memory_bytes for c in cs}) for g, cs in by_graph.items()
        }
        self._time = {g: Curve.through({(c.batch, c.tokens): c.time_ms for c in cs}) for g, cs in by_graph.items()}

    def pages_ms(self, size_bytes: int) -> float:
        """Mapping so many bytes of weights, and giving them back."""
        return sum(cost.time_ms / cost.memory_bytes for cost in self._pages if cost.memory_bytes) * size_bytes

    def memory_bytes(self, graph: str, rows: int, tokens: int) -> float:
        """Beside its inputs, outputs included; 0 for what was never measured."""
        return self._memory.get(graph, Curve()).at(rows, tokens)

    def time_ms(self, graph: str, rows: int, tokens: int) -> float:
        """Of one run; 0 for what was never measured."""
        return self._time.get(graph, Curve()).at(rows, tokens)


@dataclass(frozen=True, slots=True)
class Run:
    """A graph that is run so many `times` at one shape."""

    graph: str
    rows: int
    tokens: int
    times: int


def loss_runs(manifest: Manifest, rows: int, tokens: int, head_rows: int) -> Iterator[Run]:
    """What the loss of `rows` rows runs: over a vocabulary in slices of it and chunks of `head_rows` positions."""
    if manifest.classes_loss is not None:
        yield Run(manifest.classes_loss.step, rows, tokens, 1)
    if (loss := manifest.vocabulary_loss) is not None:
        slices = -(-manifest.model.vocabulary // SLICE_ROWS)
        chunks, rest = divmod(rows * tokens, head_rows)
        for graph in (loss.project, loss.unproject):
            for positions, times in ((head_rows, chunks), (rest, 1)):
                if positions:
                    yield Run(graph, positions, 1, times * slices)


def step_s(manifest: Manifest, batch: int, tokens: int) -> float:
    """Seconds that the graphs of a step of `batch` rows of `tokens` tokens take where their costs were measured.

    All rows walk at once, weights stay in memory, and each segment is done in the fastest of its ways, so that it is
    the least that a step takes there; the optimizer itself is left out. 0 where nothing was measured.
    """
    costs = Costs(manifest.costs)
    back = {segment.name for segment in manifest.walked_back()}

    def pair_ms(pair: Structure | Keeping, *, returns: bool) -> float:
        there = costs.time_ms(pair.forward, batch, tokens)
        return there + costs.time_ms(pair.backward, batch, tokens) if returns else there

    total_ms = costs.time_ms(manifest.context, batch, tokens)
    for segment in manifest.walk:
        structure, returns = manifest.structures[segment.structure], segment.name in back
        pairs: tuple[Structure | Keeping, ...] = (structure, *structure.keepings) if returns else (structure,)
        total_ms += min(pair_ms(pair, returns=returns) for pair in pairs)
    for run in loss_runs(manifest, batch, tokens, MOST_HEAD_ROWS):
        total_ms += run.times * costs.time_ms(run.graph, run.rows, run.tokens)
    return total_ms / 1e3
