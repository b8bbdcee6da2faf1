"""What a graph costs at any shape, from what was measured at three: (1, T), (8, T) and (1, 4T) rows and tokens.

At b rows of S tokens it is taken as c0 + c1 b S + c2 b S^2, in bytes as in milliseconds: the scores of attention are
quadratic in the tokens, the rest is linear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_sdk.wire.manifest import Cost

PROCESS, TRAINING, PAGES = "process", "training", "pages"  # costs that are of no graph


@dataclass(frozen=True, slots=True)
class Line:
    """c0 + c1 b S + c2 b S^2; no coefficient is negative, so more is never less."""

    fixed: float = 0.0
    each: float = 0.0
    square: float = 0.0

    @staticmethod
    def through(points: dict[tuple[int, int], float]) -> Line:
        """Through values by (rows, tokens): the smallest shape, one of more rows, perhaps one of more tokens."""
        (rows, tokens), least = min(points.items())
        wider = max(points.items(), key=lambda point: point[0][0])
        longer = max(points.items(), key=lambda point: point[0][1])
        (more_rows, _), at_more = wider
        (_, more_tokens), at_longer = longer
        if more_rows == rows:
            return Line(fixed=least)
        row = max(at_more - least, 0.0) / (more_rows - rows)  # c1 S + c2 S^2
        square = 0.0
        if more_tokens > tokens:
            long_row = (at_longer - least) / rows + row  # c1 S' + c2 S'^2
            square = (long_row / more_tokens - row / tokens) / (more_tokens - tokens)
        square = min(max(square, 0.0), row / tokens**2)
        each = row / tokens - square * tokens
        return Line(max(least - rows * row, 0.0), each, square)

    def at(self, rows: int, tokens: int) -> float:
        """The value there."""
        return self.fixed + rows * tokens * (self.each + self.square * tokens)


class Costs:
    """The manifest's costs by graph, at any shape."""

    def __init__(self, costs: Iterable[Cost]) -> None:
        """Fit each graph's lines. `process_bytes` is what there is beside all that is planned."""
        by_graph: dict[str, list[Cost]] = {}
        for cost in costs:
            by_graph.setdefault(cost.graph, []).append(cost)
        fixed = [cost for name in (PROCESS, TRAINING) for cost in by_graph.pop(name, [])]
        self.process_bytes = sum(cost.memory_bytes for cost in fixed)
        self._pages = by_graph.pop(PAGES, [])
        self._memory = {
            g: Line.through({(c.batch, c.tokens): c.memory_bytes for c in cs}) for g, cs in by_graph.items()
        }
        self._time = {g: Line.through({(c.batch, c.tokens): c.time_ms for c in cs}) for g, cs in by_graph.items()}

    def pages_ms(self, size_bytes: int) -> float:
        """Mapping so many bytes of weights, and giving them back."""
        return sum(cost.time_ms / cost.memory_bytes for cost in self._pages if cost.memory_bytes) * size_bytes

    def memory_bytes(self, graph: str, rows: int, tokens: int) -> float:
        """Beside its inputs, outputs included; 0 for what was never measured."""
        return self._memory.get(graph, Line()).at(rows, tokens)

    def time_ms(self, graph: str, rows: int, tokens: int) -> float:
        """Of one run; 0 for what was never measured."""
        return self._time.get(graph, Line()).at(rows, tokens)
