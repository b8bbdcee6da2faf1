"""A level as torch has it: a copy of the adapted model, layers dropped, tensors fitted, matrices rounded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from peft import PeftModel
from torch import nn

from edge_sdk.wire.manifest import LevelSpec
from edge_sdk.wire.tensors import Array
from export.adapters import adapter_parameters, named
from export.compress.quantize import FULL_BITS, is_quantized, rounded
from export.parts import backbone_of, blocks_of, keep_layers
from export.program import VOCABULARY, Adapted, places, vocabulary_matrix

Fitted: TypeAlias = Mapping[str, Mapping[str, Array]]  # by segment, or VOCABULARY, then by input name, float32
NOT_FITTED: Final[Fitted] = MappingProxyType({})


def emulator(
    adapted: Adapted, level: LevelSpec, fitted: Fitted = NOT_FITTED
) -> tuple[PeftModel, dict[str, nn.Parameter]]:
    """A copy of the model in the level's state, and its adapter's parameters by their names in the full model."""
    model = copy.deepcopy(adapted.peft_model)
    parameters = adapter_parameters(model, adapted.foundation)
    own = frozen_parameters(dataclasses.replace(adapted, peft_model=model, parameters=parameters))
    with torch.no_grad():
        for segment, tensors in fitted.items():
            for name, array in tensors.items():
                own[segment][name].copy_(torch.from_numpy(array))
    keep_layers(model.get_base_model(), level.layers)
    _round_matrices(model, level)
    return model, parameters


def frozen_parameters(adapted: Adapted) -> dict[str, dict[str, nn.Parameter]]:
    """What does not train, by segment and input name; VOCABULARY where the projection has a matrix of its own."""
    found = {
        place.segment: {name: entry.value for name, entry in named(place.part).items() if not entry.trained}
        for place in places(adapted)
    }
    if not adapted.foundation.spec.task.classifies:
        matrix, tied = vocabulary_matrix(adapted)
        if not tied:
            found[VOCABULARY] = {"matrix": matrix}
    return found


def _round_matrices(model: PeftModel, level: LevelSpec) -> None:
    blocks = blocks_of(backbone_of(model.get_base_model()))
    own = {
        p: level.bits_of(layer) for layer, block in zip(level.layers, blocks, strict=True) for p in block.parameters()
    }
    with torch.no_grad():
        for parameter in model.parameters():  # each once, tied or not
            array, bits = parameter.detach().numpy(), own.get(parameter, level.bits)
            if bits != FULL_BITS and not parameter.requires_grad and is_quantized(array.shape):
                parameter.copy_(torch.from_numpy(rounded(array, bits)))
