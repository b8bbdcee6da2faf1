"""LoRA that begins where a sparse finetune ended: the second stage of SLoRA (https://arxiv.org/abs/2308.06522).

Of each target's change the best approximation of the factors' rank (Eckart and Young 1936), divided between A and B
alike, so that neither trains faster than the other. A classifier begins as it was trained.
"""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from export.adapters import adapter_arrays, adapter_parameters, set_adapter
from export.errors import ExportError
from export.plug_in import reload
from export.program import Adapted
from export.sparse import change_of, sparse_layers

DEFAULT = "default"  # what peft calls an adapter that nobody has named
NEGLIGIBLE = 1e-7  # singular values below this share of the largest are rounding of float32


def begin_from(adapted: Adapted, checkpoint: pathlib.Path) -> None:
    """Set the factors of `adapted`, a new LoRA, to what the sparse PEFT `checkpoint` of the same model changed.

    Raises ExportError when the folder is no checkpoint of this model, or not of kind sparse, or has other targets.
    """
    trained = reload(adapted.foundation, checkpoint, trainable=True)  # so that it tells what did train
    changed = sparse_layers(trained.get_base_model())
    layers = {name: one for name, one in adapted.base.named_modules() if isinstance(one, LoraLayer)}
    if not changed:
        msg = f"cannot begin from {checkpoint}: its adapter is not of kind sparse"
        raise ExportError(msg)
    if odd := changed.keys() ^ layers.keys():
        msg = f"cannot begin from {checkpoint}: it and the new adapter differ in {min(odd)}: give the same targets"
        raise ExportError(msg)
    for name, layer in changed.items():
        _set_factors(layers[name], change_of(layer))
    before = adapter_arrays(adapter_parameters(trained, adapted.foundation))
    set_adapter(adapted.parameters, {name: before[name] for name in adapted.parameters if name in before})


def _set_factors(layer: Any, change: Tensor) -> None:  # noqa: ANN401 - peft's modules are typed by attribute
    """Make the factors' product the best approximation of `change` (out, in); what rank is left is as LoRA starts."""
    a, b = layer.lora_A[DEFAULT].weight, layer.lora_B[DEFAULT].weight
    columns, values, rows = torch.linalg.svd(change.detach().double(), full_matrices=False)
    kept = int((values[: len(a)] > NEGLIGIBLE * values[0]).sum())
    roots = (values[:kept] / layer.scaling[DEFAULT]).sqrt()
    with torch.no_grad():
        b[:, :kept] = (columns[:, :kept] * roots).to(b.dtype)
        a[:kept] = (rows[:kept] * roots[:, None]).to(a.dtype)
