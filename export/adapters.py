"""The adapter: which tensors train, and what they are called.

peft makes it; we name its tensors. A tensor's global name is `<segment>/<input>`: `block.3/self_attn.q_proj.lora_A`
for a factor in layer 3 of the full model, `head/classifier.weight` for the classifier, which trains with the adapter.
Dropout is zero. LoRA: https://arxiv.org/abs/2106.09685; A is drawn, B is zero, so that the adapter starts as identity.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from edge_sdk.wire.manifest import AdapterSpec, TaskType
from edge_sdk.wire.tensors import Array
from export.errors import ExportError
from export.foundation import NEW_WITH_THE_TASK, Foundation, first_line, quiet, seeded
from export.parts import Part, backbone_of, blocks_of

KINDS = ("lora",)
PEFT_TASKS = {TaskType.CAUSAL_LM: "CAUSAL_LM", TaskType.SEQUENCE_CLASSIFICATION: "SEQ_CLS"}  # it has none for images
SAVED_BY_PEFT = {TaskType.SEQUENCE_CLASSIFICATION: ("classifier", "score")}  # without being told
_TRAINED = re.compile(r"\.(lora_[AB])\.default\.weight$|\.modules_to_save\.default(?=\.)")


@dataclass(frozen=True, slots=True)
class AdapterRequest:
    """The adapter to make: `targets` are last parts of module names. Raises ExportError for what no adapter can be."""

    kind: str
    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse an unknown kind and an impossible rank."""
        if self.kind not in KINDS:
            msg = f"adapters of kind {self.kind!r} are not supported; supported are {', '.join(KINDS)}"
            raise ExportError(msg)
        if self.rank < 1:
            msg = f"a rank of {self.rank}: give 1 or more"
            raise ExportError(msg)

    def at_rank(self, rank: int) -> AdapterRequest:
        """The same adapter at another rank, and of the same scale: B A counts alpha / rank times."""
        return dataclasses.replace(self, rank=rank, alpha=self.alpha * (rank / self.rank))

    @staticmethod
    def of(spec: AdapterSpec) -> AdapterRequest:
        """The adapter that a manifest describes."""
        return AdapterRequest(spec.kind, spec.rank, spec.alpha, spec.targets)


@dataclass(frozen=True, slots=True)
class Named:
    """A parameter of a part: its `path` in the part's module, its value, and whether the adapter trains it."""

    path: str
    value: nn.Parameter
    trained: bool


def attach(model: nn.Module, task: TaskType, request: AdapterRequest, seed: int) -> PeftModel:
    """Put a new adapter around `model`, in place. Raises ExportError when a target is no module of it.

    What a checkpoint may lack trains along and is saved with the adapter.
    """
    told = set(NEW_WITH_THE_TASK) - set(SAVED_BY_PEFT.get(task, ()))
    new = [name for name, _ in model.named_children() if name in told]
    config = LoraConfig(
        r=request.rank,
        lora_alpha=request.alpha,  # type: ignore[arg-type]  # peft says int, and divides
        target_modules=list(request.targets),
        lora_dropout=0.0,
        modules_to_save=new or None,
        task_type=PEFT_TASKS.get(task),
    )
    with seeded(seed), quiet():
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            msg = f"cannot adapt {', '.join(request.targets)}: {first_line(error)}"
            raise ExportError(msg) from error
    found: PeftModel = adapted.eval()
    return found


def named(part: Part) -> dict[str, Named]:
    """The part's parameters by input name: frozen ones first, each in the module's order."""
    found = {}
    for path, value in part.module.named_parameters():
        if ".original_module." in path:  # peft's copy of what trains, not called
            continue
        name = _TRAINED.sub(_without_peft, path).replace(".base_layer.", ".")
        found[part.names.get(name, name)] = Named(path, value, _TRAINED.search(path) is not None)
    return dict(sorted(found.items(), key=lambda item: item[1].trained))


def _without_peft(found: re.Match[str]) -> str:
    return f".{found[1]}" if found[1] else ""


def adapter_parameters(adapted: PeftModel, foundation: Foundation) -> dict[str, nn.Parameter]:
    """Every trained parameter of the full model by global name, in walking order.

    Raises ExportError when the adapter reaches where no gradient is captured (embedding, vocabulary projection).
    """
    base: Any = adapted.get_base_model()
    family = foundation.family
    parts = {f"block.{k}": family.block(m) for k, m in enumerate(blocks_of(backbone_of(base)))}
    if (head := family.heads[foundation.spec.task]) is not None:
        parts["head"] = head(base)
    found = {
        f"{segment}/{name}": entry.value
        for segment, part in parts.items()
        for name, entry in named(part).items()
        if entry.trained
    }
    known = {id(value) for value in found.values()}
    for path, value in adapted.named_parameters():
        if value.requires_grad and id(value) not in known:
            msg = f"the adapter reaches {path}, outside the blocks and the classifier: choose other targets"
            raise ExportError(msg)
    return found


def adapter_arrays(parameters: Mapping[str, Tensor]) -> dict[str, Array]:
    """The adapter's values, for a tensor file."""
    return {name: value.detach().numpy().copy() for name, value in parameters.items()}


def starting_values_at_rank(values: Mapping[str, Array], rank: int) -> dict[str, Array]:
    """Of an adapter's starting values those at a lower rank: B is zero, so the first rows of A are as good as any."""

    def cut(name: str, array: Array) -> Array:
        if name.endswith("lora_A"):
            return array[:rank]
        return array[:, :rank] if name.endswith("lora_B") else array

    return {name: cut(name, array) for name, array in values.items()}


def set_adapter(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Array]) -> None:
    """Give the adapter other values; what `values` lacks stays. Raises ExportError on a wrong name or shape."""
    for name, array in values.items():
        if name not in parameters:
            msg = f"the adapter file has the tensor {name!r}, the model's adapter does not: other targets?"
            raise ExportError(msg)
        if tuple(parameters[name].shape) != array.shape:
            msg = f"adapter tensor {name} has shape {array.shape}, the model needs {tuple(parameters[name].shape)}"
            raise ExportError(msg)
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(np.array(array, dtype=np.float32)))
