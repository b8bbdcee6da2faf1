"""A model with its adapter, captured: every graph, and which tensors go where in the walk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from peft import PeftModel
from torch import nn

from edge_sdk.wire.tensors import Array
from export.adapters import (
    AdapterRequest,
    adapter_arrays,
    adapter_parameters,
    attach,
    block_parts,
    bridge_behind,
    named,
)
from export.compress.bridges import blocks_alone
from export.errors import ExportError
from export.foundation import Foundation
from export.kinds import taken_positions
from export.parts import Part, backbone_of
from export.prefix import context_behind
from export.structures import (
    Captured,
    capture_block,
    capture_context,
    capture_embed,
    capture_patches,
    capture_step,
    signature,
    sizes_for,
    vocabulary_graphs,
)

Report = Callable[[str], None]
VOCABULARY = "vocabulary"  # the projection's own matrix, where it is not the embedding's; in no segment


@dataclass(frozen=True, slots=True)
class Adapted:
    """A loaded model with a new adapter on it. `parameters` are the adapter's, by global name."""

    foundation: Foundation
    request: AdapterRequest
    peft_model: PeftModel
    parameters: Mapping[str, nn.Parameter]

    @property
    def base(self) -> Any:  # noqa: ANN401 - transformers' modules are typed by attribute
        """The model below peft's wrapper, with the adapter's layers in it."""
        return self.peft_model.get_base_model()

    @property
    def backbone(self) -> Any:  # noqa: ANN401
        """The model below its head."""
        return backbone_of(self.base)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the walk of the full model; `layer` is None for all but blocks and the bridges behind them."""

    segment: str
    structure: str
    part: Part
    layer: int | None

    def frozen(self) -> dict[str, Array]:
        """The frozen tensors by input name, float32, sharing the model's memory."""
        return frozen_arrays(self.part)


@dataclass(frozen=True, slots=True)
class Program:
    """Everything that was captured of one model: shared by all levels. `context` is None where blocks need none."""

    adapted: Adapted
    context: ir.Model | None
    structures: Mapping[str, Captured]
    walk: tuple[Place, ...]
    vocabulary: Mapping[str, ir.Model]
    step: Captured | None
    head: Part | None


def adapt(foundation: Foundation, request: AdapterRequest, seed: int, operated: nn.Module | None = None) -> Adapted:
    """Load the model, or copy one that was operated on, and put a new adapter on it; what is drawn is from `seed`.

    Raises ExportError, also where the adapter of an operated model is not, to the bit, that of the full model.
    """
    model = foundation.load(seed) if operated is None else copy.deepcopy(operated)
    peft_model = attach(model, foundation, request, seed)
    adapted = Adapted(foundation, request, peft_model, adapter_parameters(peft_model, foundation))
    if operated is not None:
        wanted = adapter_arrays(adapt(foundation, request, seed).parameters)
        found = adapter_arrays(adapted.parameters)
        if changed := [name for name in wanted.keys() | found.keys() if not _equal(wanted.get(name), found.get(name))]:
            msg = (
                f"the adapter's {min(changed)} would not fit the full model: adapt other modules, or leave these whole"
            )
            raise ExportError(msg)
    return adapted


def _equal(one: Array | None, other: Array | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)


def capture_program(adapted: Adapted, report: Report) -> Program:
    """Capture every structure once. `report` is told the name of each before it is captured. Raises ExportError."""
    family, backbone, width = adapted.foundation.family, adapted.backbone, adapted.foundation.spec.width
    walk = places(adapted)
    image = adapted.foundation.spec.image
    sizes = sizes_for(adapted.peft_model, image)
    attention_mask = torch.ones(sizes.batch, sizes.tokens, dtype=torch.int64)
    before = taken_positions(adapted.request)
    context = context_behind(family, backbone, attention_mask, before)
    report("context")
    context_graph = capture_context(family, backbone, before, sizes) if context else None
    structures: dict[str, Captured] = {}
    for place in walk:
        if place.structure in structures:
            continue
        report(place.structure)
        if place.structure == "embed":
            captured = capture_embed(place.part, sizes) if image is None else capture_patches(place.part, image, sizes)
            structures["embed"] = captured
        else:
            with blocks_alone(adapted.peft_model):
                structures[place.structure] = capture_block(place.part, context, width, sizes)
    report("loss")
    task = adapted.foundation.spec.task
    make_head = family.heads[task]
    head = None if make_head is None else make_head(adapted.base)
    step = None if head is None else capture_step(head, width, sizes, labels_tokens=task.labels_tokens)
    vocabulary = {} if head is not None else vocabulary_graphs(width)
    return Program(adapted, context_graph, structures, walk, vocabulary, step, head)


def frozen_arrays(part: Part) -> dict[str, Array]:
    """A part's frozen tensors by input name, float32, sharing the model's memory."""
    return {name: entry.value.detach().numpy() for name, entry in named(part).items() if not entry.trained}


def vocabulary_matrix(adapted: Adapted) -> tuple[nn.Parameter, bool]:
    """The projection to the vocabulary (vocabulary, width), and whether it is the embedding's matrix.

    Raises ExportError when it has a bias, which no family that we support has.
    """
    projection = adapted.base.get_output_embeddings()
    if getattr(projection, "bias", None) is not None:
        msg = "a vocabulary projection with a bias is not supported"
        raise ExportError(msg)
    matrix: nn.Parameter = projection.weight
    return matrix, matrix is adapted.base.get_input_embeddings().weight


def uses_vocabulary(program: Program) -> bool:
    """Whether the loss is over the vocabulary."""
    return not program.adapted.foundation.spec.task.classifies


def layer_of(segment: str) -> int | None:
    """The layer of a segment of that name; None for all but blocks and bridges."""
    kind, _, number = segment.partition(".")
    return int(number) if kind in {"block", "bridge"} else None


def places(adapted: Adapted) -> tuple[Place, ...]:
    """The walk of the full model. Blocks of one structure share their graphs, which know shapes and no values."""
    return tuple(_walk(adapted))


def _walk(adapted: Adapted) -> Iterator[Place]:
    family, backbone = adapted.foundation.family, adapted.backbone
    yield Place("embed", "embed", family.embed(backbone, taken_positions(adapted.request)), None)
    structures: dict[tuple[Any, ...], str] = {}
    for layer, part in enumerate(block_parts(adapted.peft_model, family)):
        number = len(structures) + 1
        structure = structures.setdefault(signature(part), "block" if number == 1 else f"block{number}")
        yield Place(f"block.{layer}", structure, part, layer)
        if (bridge := bridge_behind(part)) is not None:
            yield Place(f"bridge.{layer}", "bridge", bridge, layer)
    if (norm := family.norm(backbone)) is not None:
        yield Place("norm", "norm", norm, None)
