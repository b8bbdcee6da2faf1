"""The adapter: which tensors train, and what they are called.

peft makes it; we name its tensors. A tensor's global name is `<segment>/<input>`: `block.3/self_attn.q_proj.lora_A`
for a factor in layer 3 of the full model, `block.3/self_attn.q_proj.weight` where the block itself trains,
`head/classifier.weight` for the classifier, which trains with any adapter. Dropout is zero.

- LoRA: https://arxiv.org/abs/2106.09685; A is drawn, B is zero, so that the adapter starts as identity. With rank
  stabilisation (rslora): https://arxiv.org/abs/2312.03732
- sparse: a share of the targets' own weights, `export.sparse`
- IA3: https://arxiv.org/abs/2205.05638; its factors start as ones
- the norms: https://arxiv.org/abs/2312.11420, peft's LNTuning
- the biases (BitFit, https://arxiv.org/abs/2106.10199), the classifier, whole blocks: peft has no kind for these, and
  its LoRA can train biases and whole modules beside its factors. So they are LoRA without targets, which peft loads.
- bottlenecks, prompts: modules of ours, see `export.inserted`, trained in the same way
- prefixes: peft's, its one tensor taken apart, see `export.prefix`
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    ShiraConfig,
    get_peft_model,
)
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from edge_sdk.wire.manifest import AdapterSpec
from edge_sdk.wire.tensors import Array
from export.compress.bridges import Bridge, is_of_bridge
from export.errors import ExportError
from export.families import Family
from export.foundation import NEW_WITH_THE_TASK, Foundation, first_line, quiet, seeded
from export.inserted import insert
from export.kinds import FACTORS, KINDS, beside, why_not
from export.parts import Part, backbone_of, blocks_of
from export.prefix import cache_of, place_prefixes, prefixes_of, with_prefix
from export.prompt import states_of_tokens
from export.sparse import MASK_SEED, add_densely
from export.tasks import TASKS

MIN_TOKENS = 2  # in a row: one predicts nothing
_COPIES = {LNTuningLayer: "base_layer", ModulesToSaveWrapper: "original_module"}  # of what trains, not called
_AROUND = re.compile(r"\b(?:base_layer|(?:modules_to_save|ln_tuning_layers)\.default)\.")
_BEHIND = re.compile(r"\.default(?:\.weight)?$")


@dataclass(frozen=True, slots=True)
class AdapterRequest:
    """The adapter to make, fields as in AdapterSpec. Raises ExportError for an unknown kind and an impossible rank."""

    kind: str
    rank: int = 0
    alpha: float = 0.0
    targets: tuple[str, ...] = ()
    last: int = 0
    first: int = 0
    length: int = 0

    def __post_init__(self) -> None:
        """Refuse what no model could have."""
        if why := why_not(self.kind, self.options):
            raise ExportError(why)
        if "rank" in KINDS[self.kind].options and self.rank < 1:
            msg = f"a rank of {self.rank}: give 1 or more"
            raise ExportError(msg)
        if negative := next((name for name in ("first", "last", "length") if getattr(self, name) < 0), None):
            msg = f"{negative} is {getattr(self, negative)}: give 0 or more"
            raise ExportError(msg)

    @property
    def options(self) -> dict[str, Any]:
        """All but its kind, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "kind"}

    def at_rank(self, rank: int) -> AdapterRequest:
        """The same adapter at another rank, and of the same scale: B A counts alpha / rank times, for rslora alpha /
        sqrt(rank) times.
        """
        if rank == self.rank:
            return self
        share = rank / self.rank
        return dataclasses.replace(
            self, rank=rank, alpha=self.alpha * (math.sqrt(share) if self.kind == "rslora" else share)
        )

    @staticmethod
    def of(spec: AdapterSpec) -> AdapterRequest:
        """The adapter that a manifest describes."""
        return AdapterRequest(spec.kind, spec.rank, spec.alpha, spec.targets, spec.last, spec.first, spec.length)

    def resolved(self, foundation: Foundation) -> AdapterRequest:
        """The same for this model: with the family's targets where it has none, without what its kind does not take.

        Raises ExportError for what the model lacks.
        """
        if why := why_not(self.kind, self.options, foundation.spec.task):
            raise ExportError(why)
        if self.first + self.last > (layers := foundation.spec.layers):
            first = f"the first {self.first} and " if self.first else ""
            msg = f"cannot train {first}the last {self.last} of {layers} blocks: give 1 to {layers} in all"
            raise ExportError(msg)
        if beside(self, foundation.spec).max_tokens < MIN_TOKENS:
            most = foundation.spec.max_tokens - MIN_TOKENS
            msg = f"a {self.kind} of length {self.length} in {foundation.spec.max_tokens} positions: give 1 to {most}"
            raise ExportError(msg)
        taken = {name: self.options[name] for name in KINDS[self.kind].options}
        if "targets" in taken:
            taken["targets"] = self.targets or _own_targets(self.kind, foundation.family)
        return AdapterRequest(self.kind, **taken)

    def layers_of(self, total: int) -> tuple[int, ...]:
        """Which of so many layers of the full model have a part of it."""
        every = range(total)
        outer = (*every[: self.first], *every[total - self.last :])
        return {"head": (), "layers": outer}.get(self.kind, tuple(every))


@dataclass(frozen=True, slots=True)
class Named:
    """A parameter of a part: its `path` in the part's module, its value, and whether the adapter trains it."""

    path: str
    value: nn.Parameter
    trained: bool


def attach(model: nn.Module, foundation: Foundation, request: AdapterRequest, seed: int) -> PeftModel:
    """Put a new adapter around `model`, in place. Raises ExportError when the model has nothing that it could train.

    What a checkpoint may lack trains along and is saved with the adapter.
    """
    task = TASKS[foundation.spec.task]
    with seeded(seed):
        config: Any = _CONFIGURATIONS[request.kind](model, foundation, request)
    told = set(NEW_WITH_THE_TASK) - set(task.saved_by_peft)
    new = [name for name, _ in model.named_children() if name in told]
    config.task_type = task.peft
    config.modules_to_save = [*(config.modules_to_save or ()), *new] or None
    with seeded(seed), quiet():
        try:
            adapted: PeftModel = get_peft_model(model, config).eval()
            if request.kind == "prefix":
                place_prefixes(adapted)
            if request.kind == "sparse":
                add_densely(adapted)
        except ValueError as error:
            msg = f"cannot adapt {', '.join(request.targets) or 'this model'}: {first_line(error)}"
            raise ExportError(msg) from error
    _freeze(adapted, foundation, request)
    return adapted


def _factors(model: nn.Module, foundation: Foundation, request: AdapterRequest) -> PeftConfig:
    _targeted(model, foundation.family, request)
    return LoraConfig(
        r=request.rank,
        lora_alpha=request.alpha,  # type: ignore[arg-type]  # peft says int, and divides
        target_modules=list(request.targets),
        lora_dropout=0.0,
        use_rslora=request.kind == "rslora",
    )


def _shares(model: nn.Module, foundation: Foundation, request: AdapterRequest) -> PeftConfig:
    for name, module in _targeted(model, foundation.family, request).items():
        if not isinstance(module, nn.Linear):
            msg = f"cannot train a share of {name}, which is no torch.nn.Linear: choose another kind, as lora"
            raise ExportError(msg)
    return ShiraConfig(r=request.rank, target_modules=list(request.targets), random_seed=MASK_SEED)


def _scales(model: nn.Module, foundation: Foundation, request: AdapterRequest) -> PeftConfig:
    not_meant = _not_meant(foundation.family, request)
    _targeted(model, foundation.family, request, not_meant)
    return IA3Config(
        target_modules=list(request.targets),
        feedforward_modules=[name for name in request.targets if name in foundation.family.feedforward],
        exclude_modules=not_meant or None,
    )


def _bottlenecks(model: nn.Module, foundation: Foundation, request: AdapterRequest) -> PeftConfig:
    modules = _targeted(model, foundation.family, request, _not_meant(foundation.family, request))
    return _trained_whole(insert(model, "bottleneck", request.rank, list(modules)))


def _prompts(model: nn.Module, foundation: Foundation, request: AdapterRequest) -> PeftConfig:
    blocks = _names(model, list(blocks_of(backbone_of(model))))
    names = insert(model, "prompt", request.length, blocks)
    if foundation.spec.image is None:
        ids = torch.randint(foundation.spec.vocabulary, (request.length,))
        for name, states in zip(names, states_of_tokens(foundation.load(), ids), strict=True):
            model.get_submodule(name).load_state_dict({"weight": states})
    return _trained_whole(names)


def _prefixes(model: nn.Module, foundation: Foundation, request: AdapterRequest) -> PeftConfig:
    family, blocks = foundation.family, list(blocks_of(backbone_of(model)))
    if not all(cache_of(block) for block in blocks):
        msg = f"the blocks of this {family.name} take no keys and values but their own: choose another kind, as lora"
        raise ExportError(msg)
    if any("window_mask" in family.block(block).context for block in blocks):
        msg = "a prefix beside windowed attention is not supported: choose another kind, as lora"
        raise ExportError(msg)
    return PrefixTuningConfig(num_virtual_tokens=request.length)


def _trained_whole(modules: list[str]) -> PeftConfig:
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=modules)


def _biases(model: nn.Module, foundation: Foundation, _request: AdapterRequest) -> PeftConfig:
    inner = [name for top in _walked(model, foundation) for name, _ in top.named_parameters()]
    if not any(name.endswith("bias") and not name.endswith(foundation.family.idle) for name in inner):
        msg = f"this {foundation.family.name} has no biases: choose another kind, as lora or layernorm"
        raise ExportError(msg)
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, bias="all")


def _norms(model: nn.Module, foundation: Foundation, _request: AdapterRequest) -> PeftConfig:
    inner = [module for top in _walked(model, foundation) for module in top.modules() if _is_norm(module)]
    if not inner:
        msg = f"the norms of this {foundation.family.name} have no weights: choose another kind, as lora"
        raise ExportError(msg)
    return LNTuningConfig(target_modules=_names(model, inner))


def _whole(model: nn.Module, foundation: Foundation, request: AdapterRequest) -> PeftConfig:
    """The modules that train whole: blocks; for all of them, the norm above as well; for the classifier alone, none."""
    blocks = blocks_of(backbone_of(model))
    outer = [blocks[k] for k in request.layers_of(foundation.spec.layers)]
    chosen = _walked(model, foundation) if request.kind == "full" else outer
    return _trained_whole(_names(model, [module for module in chosen if any(True for _ in module.parameters())]))


_CONFIGURATIONS: Mapping[str, Callable[[nn.Module, Foundation, AdapterRequest], PeftConfig]] = {
    **dict.fromkeys(FACTORS, _factors),
    "sparse": _shares,
    "ia3": _scales,
    "bottleneck": _bottlenecks,
    "prompt": _prompts,
    "prefix": _prefixes,
    "bias": _biases,
    "layernorm": _norms,
    **dict.fromkeys(("head", "layers", "full"), _whole),
}


def _own_targets(kind: str, family: Family) -> tuple[str, ...]:
    """The modules that an adapter of this kind has in this family, unless told otherwise. Raises ExportError."""
    own = {"ia3": (*family.keys_values, *family.feedforward), "bottleneck": family.feedforward}
    if not (found := own.get(kind, family.targets)):
        msg = f"an adapter of kind {kind} needs targets: export/families/{family.name}.py names none for it"
        raise ExportError(msg)
    return found


def _targeted(
    model: nn.Module, family: Family, request: AdapterRequest, not_meant: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """The modules whose names end as the targets do, without those not meant.

    Raises ExportError for a target that there is not (of a family's own, one will do: its models differ), and for a
    rank that is higher than a matrix has rows or columns.
    """
    excluded = tuple(f".{name}" for name in not_meant)
    inner = {name: module for name, module in model.named_modules() if not name.endswith(excluded)}
    found = {target: [name for name in inner if f".{name}".endswith(f".{target}")] for target in request.targets}
    missing = [target for target, names in found.items() if not names]
    if missing and (len(missing) == len(found) or request.targets != _own_targets(request.kind, family)):
        msg = f"cannot adapt {', '.join(missing)}: the model has no such module"
        raise ExportError(msg)
    targeted = {name: inner[name] for names in found.values() for name in names}
    for name, module in targeted.items():
        sides = tuple(module.weight.shape) if isinstance(module, nn.Linear | Conv1D) else ()
        if sides and request.rank > min(sides):
            msg = f"a rank of {request.rank} at {name}, a matrix of {sides[0]} x {sides[1]}: give 1 to {min(sides)}"
            raise ExportError(msg)
    return targeted


def _not_meant(family: Family, request: AdapterRequest) -> list[str]:
    """Modules whose names end as a target's does, and that were not named themselves."""
    return [name for name in family.not_feedforward if name not in request.targets]


def _walked(model: nn.Module, foundation: Foundation) -> list[nn.Module]:
    """The blocks, and the norm above them where there is one: where gradients are captured, but for the classifier."""
    backbone = backbone_of(model)
    norm = foundation.family.norm(backbone)
    return [*blocks_of(backbone), *([] if norm is None else [norm.module])]


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm with weights: LayerNorm, or the RMS norm of which each model in transformers has its own."""
    is_norm = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    return is_norm and any(True for _ in module.parameters(recurse=False))


def _names(model: nn.Module, modules: list[nn.Module]) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    return [names[module] for module in modules]


def _freeze(adapted: PeftModel, foundation: Foundation, request: AdapterRequest) -> None:
    """Freeze what the loss does not depend on, and bridges, also of blocks that train whole; and of the biases, which
    peft trains wherever they are, those of the embedding.
    """
    reached = {id(entry.value) for _, entry in _trained(adapted, foundation)}
    for path, value in adapted.named_parameters():
        idle = path.endswith(foundation.family.idle) or is_of_bridge(path)
        if idle or (request.kind == "bias" and id(value) not in reached):
            value.requires_grad_(False)  # noqa: FBT003 - torch takes it by place


def block_parts(adapted: PeftModel, family: Family) -> list[Part]:
    """The blocks, with what the adapter gives each from outside."""
    parts = [family.block(module) for module in blocks_of(backbone_of(adapted.get_base_model()))]
    prefixes = prefixes_of(adapted)
    return [with_prefix(*both) for both in zip(parts, prefixes, strict=True)] if prefixes else parts


def named(part: Part) -> dict[str, Named]:
    """The part's parameters by input name: frozen ones first, each in the module's order; a block's without those of
    the bridge behind it, which is a part of its own.
    """
    copies = tuple(_copies(part.module))
    found = {}
    for path, value in part.module.named_parameters():
        if path.startswith(copies) or is_of_bridge(path):
            continue
        name = _BEHIND.sub("", _AROUND.sub("", path))
        found[part.names.get(name, name)] = Named(path, value, value.requires_grad)
    return dict(sorted(found.items(), key=lambda item: item[1].trained))


def bridge_behind(part: Part) -> Part | None:
    """That of a block, where there is one."""
    copies = tuple(_copies(part.module))
    found = (m for path, m in part.module.named_modules() if isinstance(m, Bridge) and not path.startswith(copies))
    return next(map(Part, found), None)


def _copies(module: nn.Module) -> Iterator[str]:
    """How the paths of the copies begin that peft keeps of what trains whole, and does not call."""
    for name, inner in module.named_modules():
        if copy := _COPIES.get(type(inner)):
            yield f"{name}.{copy}." if name else f"{copy}."


def _trained(adapted: PeftModel, foundation: Foundation) -> Iterator[tuple[str, Named]]:
    """What trains in blocks, norm and classifier, by global name, in walking order."""
    base: Any = adapted.get_base_model()
    family, backbone = foundation.family, backbone_of(base)
    parts = {f"block.{k}": part for k, part in enumerate(block_parts(adapted, family))}
    if (norm := family.norm(backbone)) is not None:
        parts["norm"] = norm
    if (head := family.heads[foundation.spec.task]) is not None:
        parts["head"] = head(base)
    for segment, part in parts.items():
        yield from ((f"{segment}/{name}", entry) for name, entry in named(part).items() if entry.trained)


def adapter_parameters(adapted: PeftModel, foundation: Foundation) -> dict[str, nn.Parameter]:
    """Every trained parameter of the full model by global name, in walking order.

    Raises ExportError when the adapter reaches where no gradient is captured (embedding, vocabulary projection).
    """
    found = {name: entry.value for name, entry in _trained(adapted, foundation)}
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
    """Of an adapter's starting values those at a lower rank: where B is zero the first rows of A are as good as any,
    and where it is not (`export.start`) the first are the best approximation.
    """

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
