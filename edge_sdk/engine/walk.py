"""The walk: embed -> blocks -> norm -> loss, and back down to the lowest segment that trains.

Rules:

- between the two directions only each segment's input is kept, and only of segments that are walked back; the plan's
  last blocks keep activations as well;
- the runtime's arena is empty whenever a segment's graph begins: what outlives a run is put on the shelf, so a graph
  needs in a walk what it needed alone when it was measured;
- a segment's tensors are mapped while it runs and their pages given back after it, so resident memory does not depend
  on depth, unless the plan lets them stay;
- the walk ends at the lowest segment that trains: below it nothing is kept and nothing computed;
- gradients add up over micro-batches: with each loss weighted by 1 / (predictions of the whole batch), they are the
  whole batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import Batch, random_batch
from edge_sdk.engine.losses import VocabularyHead, occurring_rows, predicting_rows
from edge_sdk.engine.plan import Plan, backward_graph, kept_segments, resident_segments
from edge_sdk.engine.runtime import Graph, reserve_arena
from edge_sdk.engine.shelf import Shelf
from edge_sdk.memory import forget_code, read_memory, unbounded_allocations
from edge_sdk.wire.manifest import IGNORED, Segment, VocabularyLoss
from edge_sdk.wire.tensors import Array, TensorFile

Arrays = dict[str, Array]
PASSING, RETURNING, SHARED = "passing", "returning", "shared"  # places on the shelf that are of no segment


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one pass: `loss`, the weighted sum; `gradients` by adapter tensor, empty for a pass that does not return.

    `correct` counts the predictions whose label was the likeliest (0 for a language model).
    """

    loss: float
    correct: int
    gradients: Arrays


class Walk:
    """One artifact, loaded and ready to walk as a plan says. `watch` is called between segments and may raise to stop
    the walk.
    """

    def __init__(self, artifact: Artifact, threads: int, plan: Plan, watch: Callable[[], None]) -> None:
        """Load the graphs that the plan needs and map every tensor file. Raises ArtifactError, DecodeError."""
        self.artifact = artifact
        self.watch = watch
        self._threads = threads
        reserve_arena(plan.arena_bytes)
        self._shelf = Shelf()
        self._graphs: dict[str, Graph] = {}
        manifest = artifact.manifest
        self._segments, self._walked_back = manifest.walk, manifest.walked_back()
        lowest = len(self._segments) - len(self._walked_back)
        self._leaves_its_output = {segment.name for segment in self._segments[max(lowest - 1, 0) :]}
        self._files = {segment.name: artifact.tensors(segment.tensors) for segment in manifest.walk}
        self._classes_file = artifact.tensors(manifest.classes_loss.tensors) if manifest.classes_loss else None
        self.follow(plan)

    def follow(self, plan: Plan) -> None:
        """Go on with another plan: load what it needs, drop what it does not. Raises ArtifactError."""
        manifest = self.artifact.manifest
        self.plan = plan
        self._kept = kept_segments(manifest, plan)
        self._resident = resident_segments(manifest, plan)
        needed = set(self._needed_graphs())
        self._graphs = {name: graph for name, graph in self._graphs.items() if name in needed}
        for name in sorted(needed - set(self._graphs)):
            with unbounded_allocations():
                self._graphs[name] = Graph(self.artifact.path(name), self._threads)
            forget_code()  # 8 MB that only loading needed, and a peak that nothing later reaches in a small model
        self._vocabulary = self._vocabulary_head(manifest.vocabulary_loss, plan.head_rows)

    def rehearse(self, tokens: int) -> int:
        """Run each graph of the plan once, on a micro-batch of rows of `tokens` tokens: the bytes that the arena took.

        It will take no more for such batches, nor for smaller ones: what is left to expect is plain arithmetic.
        """
        self.watch()  # it bounds what is asked for, from the first graph on
        adapter = self.artifact.initial_adapter()  # before: room that its arrays leave in the heap is not the arena's
        held_bytes = read_memory().anonymous_bytes - self._shelf.size_bytes
        self._run_each_graph(random_batch(self.artifact.manifest, self.plan.micro_batch, tokens), adapter)
        return read_memory().anonymous_bytes - self._shelf.size_bytes - held_bytes

    def _run_each_graph(self, batch: Batch, adapter: Mapping[str, Array]) -> None:
        manifest, context = self.artifact.manifest, self.context(batch)
        hidden = np.ones((*batch.attention_mask.shape, manifest.model.width), np.float32)
        alike = {(s.structure, s.name in self._kept, self.walks_back(s)): s for s in self._segments}
        for segment in alike.values():
            flowing = batch.flowing if segment is self._segments[0] else {"x": hidden}
            self.forward(segment, flowing, context, adapter)  # as where nothing is walked back
            kept = {**flowing, **self.there(segment, flowing, context, adapter)}
            if self.walks_back(segment):
                self.back(segment, kept, hidden, context, adapter)
        chunk = -(-self.plan.head_rows // hidden.shape[1]) + 1  # rows enough for one chunk of the vocabulary's loss
        if self._vocabulary is not None and len(batch) > chunk:
            batch, hidden = batch.rows(0, chunk), hidden[:chunk]
        self.turn(hidden, batch, adapter, 1.0)

    def predictions(self, batch: Batch) -> int:
        """How many predictions the batch's loss is a mean over: tokens, or rows."""
        if self._vocabulary is None:
            return int((batch.labels != IGNORED).sum())
        return int(predicting_rows(batch.ids, batch.attention_mask)[0].sum())

    def loss(self, batch: Batch, adapter: Mapping[str, Array], weight: float) -> Outcome:
        """The weighted loss, without a way back: nothing is kept."""
        context = self.context(batch)
        flowing = batch.flowing
        for segment in self._segments:
            flowing = {"x": self.forward(segment, flowing, context, adapter)}
        if self._vocabulary is not None:
            predicts, labels = predicting_rows(batch.ids, batch.attention_mask)
            return Outcome(self._vocabulary.loss(flowing["x"][predicts], labels, weight), 0, {})
        found = self.classes_step(flowing["x"], batch, adapter, weight)
        return Outcome(float(found["loss"]), _correct(found, batch), {})

    def gradient(self, batch: Batch, adapter: Mapping[str, Array], weight: float) -> Outcome:
        """The weighted loss and its gradient by every adapter tensor that trains at this level."""
        context = self.context(batch)
        kept: list[Arrays] = []
        flowing = batch.flowing
        for segment in self._segments:
            found = self.there(segment, flowing, context, adapter)
            y = found.pop("y")
            if self.walks_back(segment):
                kept.append({**flowing, **found})
            flowing = {"x": y}
        outcome, dy = self.turn(flowing.pop("x"), batch, adapter, weight)
        for segment in reversed(self._walked_back):
            found = self.back(segment, kept.pop(), dy, context, adapter)
            dy = found.pop("dx")
            if segment.trains:
                outcome.gradients.update({f"{segment.name}/{key.removeprefix('d.')}": found[key] for key in found})
        return outcome

    def there(self, segment: Segment, flowing: Arrays, context: Arrays, adapter: Mapping[str, Array]) -> Arrays:
        """One segment forward, on the way to come back: `y` (batch, tokens, width), and what the plan keeps of it."""
        pair = self._kept.get(segment.name, self.artifact.manifest.structures[segment.structure])
        place = segment.name if segment.name in self._leaves_its_output else PASSING
        return self._shelf.put(place, self._run(pair.forward, segment, flowing, context, adapter))

    def forward(self, segment: Segment, flowing: Arrays, context: Arrays, adapter: Mapping[str, Array]) -> Array:
        """One segment forward, keeping nothing: its `y` (batch, tokens, width), until the next one's."""
        name = self.artifact.manifest.structures[segment.structure].forward
        return self._shelf.put(PASSING, self._run(name, segment, flowing, context, adapter))["y"]

    def back(self, segment: Segment, kept: Arrays, dy: Array, context: Arrays, adapter: Mapping[str, Array]) -> Arrays:
        """One segment back from its input `x` and what else `there` has kept: `dx` and `d.<trained>`."""
        pair = self._kept.get(segment.name, self.artifact.manifest.structures[segment.structure])
        found = self._run(backward_graph(pair, self.plan), segment, {**kept, "dy": dy}, context, adapter)
        return self._returned(found)

    def classes_step(self, x: Array, batch: Batch, adapter: Mapping[str, Array], weight: float) -> Arrays:
        """The classes' loss with all its gradients, in one graph."""
        loss, file = self.artifact.manifest.classes_loss, self._classes_file
        if loss is None or file is None:
            msg = "this artifact has no classes"
            raise ValueError(msg)
        found = self._graphs[loss.step].run(
            {
                "x": x,
                "attention_mask": batch.attention_mask,
                "labels": batch.labels,
                "weight": np.array(weight, np.float32),
                **{name: file[name] for name in loss.frozen},
                **{name: adapter[f"head/{name}"] for name in loss.trained},
            }
        )
        file.evict()
        self.watch()
        return found

    def walks_back(self, segment: Segment) -> bool:
        """Whether gradients flow through this segment at this level."""
        return segment in self._walked_back

    def context(self, batch: Batch) -> Arrays:
        """Masks, rotary tables: what all blocks share, computed once a batch."""
        name = self.artifact.manifest.context
        if not name:
            return {}
        found = self._shelf.put(SHARED, self._graphs[name].run({"attention_mask": batch.attention_mask}))
        self.watch()
        return found

    def turn(self, x: Array, batch: Batch, adapter: Mapping[str, Array], weight: float) -> tuple[Outcome, Array]:
        """The loss, and the gradient by the last segment's output."""
        if self._vocabulary is not None:
            predicts, labels = predicting_rows(batch.ids, batch.attention_mask)
            loss, dz = self._vocabulary.gradient(x[predicts], labels, weight)
            dy = np.zeros_like(x)
            dy[predicts] = dz
            return Outcome(loss, 0, {}), dy
        found = self.classes_step(x, batch, adapter, weight)
        correct = _correct(found, batch)
        returned = self._returned(found)
        head = {f"head/{key.removeprefix('d.')}": value for key, value in returned.items() if key.startswith("d.")}
        return Outcome(float(returned["loss"]), correct, head), returned["dx"]

    def _returned(self, found: Arrays) -> Arrays:
        """What a way back gave, out of the arena: `dx` until the next one's, and copies of the gradients."""
        dx = self._shelf.put(RETURNING, {"dx": found.pop("dx")})
        return dx | {name: array.copy() for name, array in found.items()}

    def _run(
        self, graph: str, segment: Segment, flowing: Arrays, context: Arrays, adapter: Mapping[str, Array]
    ) -> Arrays:
        structure, file = self.artifact.manifest.structures[segment.structure], self._files[segment.name]
        given = {
            **flowing,
            **{name: context[name] for name in structure.context},
            **{name: file[name] for name in structure.frozen},
            **{name: adapter[f"{segment.name}/{name}"] for name in structure.trained},
        }
        if "ids" in flowing:
            given |= occurring_rows(file, flowing["ids"])
        found = self._graphs[graph].run(given)
        if segment.name not in self._resident:
            file.evict()
        self.watch()
        return found

    def _needed_graphs(self) -> list[str]:
        """Graph files, without the backward ones that no segment of this level will use."""
        manifest = self.artifact.manifest
        names = [manifest.context] if manifest.context else []
        names += [manifest.structures[segment.structure].forward for segment in self._segments]
        for segment in self._walked_back:
            pair = self._kept.get(segment.name, manifest.structures[segment.structure])
            names += [pair.forward, backward_graph(pair, self.plan)]
        if manifest.vocabulary_loss:
            loss = manifest.vocabulary_loss
            names += [loss.project, loss.unproject, loss.lookup]
        if manifest.classes_loss:
            names.append(manifest.classes_loss.step)
        return names

    def _vocabulary_head(self, loss: VocabularyLoss | None, head_rows: int) -> VocabularyHead | None:
        if loss is None:
            return None
        tensors: TensorFile = self.artifact.tensors(loss.tensors)
        project, unproject, lookup = (self._graphs[name] for name in (loss.project, loss.unproject, loss.lookup))
        return VocabularyHead(project, unproject, lookup, tensors, head_rows, self.watch)


def _correct(found: Arrays, batch: Batch) -> int:
    return int((found["logits"].argmax(axis=-1) == batch.labels).sum())
