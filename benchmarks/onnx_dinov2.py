"""A vision transformer of DINOv2's architecture out of an ONNX file, as a plain Hugging Face folder without a head.

Sizes come from the tensors themselves. The file's exporter has folded the weights of products into constants without a
name, and the positions into two more; the nodes that use them still tell the module.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

Array = np.ndarray[Any, np.dtype[np.float32]]

BACKBONE, FOLDED = "backbone.", "onnx::"
HEAD = 64  # numbers wide, in every DINOv2
POSITIONS = "embeddings.position_embeddings"
RENAMED = {  # since the transformers that the file was exported with
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
# As for DINOv2: ImageNet's mean and deviation.
PREPROCESSOR = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def convert(source: pathlib.Path, folder: pathlib.Path, side: int = 224) -> None:
    """Write config.json, model.safetensors and, for images of `side` pixels each way, preprocessor_config.json.

    Raises ValueError for a file of another architecture.
    """
    try:
        weights = {_place(name): np.array(array) for name, array in _weights(onnx.load(source).graph)}
        model = Dinov2Model(_config(weights))
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except (KeyError, StopIteration, RuntimeError) as error:
        last = str(error).splitlines()[-1:] or [type(error).__name__]
        msg = f"{source.name} holds no model of DINOv2's architecture: {last[0].strip()}"
        raise ValueError(msg) from error
    model.save_pretrained(folder)
    crop = {"crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | crop), encoding="utf-8")


def _config(weights: Mapping[str, Array]) -> Dinov2Config:
    width, channels, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith("norm1.weight") for name in weights),
        num_attention_heads=width // HEAD,
        mlp_ratio=len(weights["encoder.layer.0.mlp.fc1.weight"]) // width,
        num_channels=channels,
        patch_size=patch,
        image_size=patch * math.isqrt(weights[POSITIONS].shape[1] - 1),
        use_mask_token=False,
    )


def _weights(graph: Any) -> Iterator[tuple[str, Array]]:  # noqa: ANN401 - protobuf
    """Each weight, by the name of its time."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, array in arrays.items():
        if name.startswith(BACKBONE) and not name.endswith("mask_token"):
            yield name.removeprefix(BACKBONE), array
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1].startswith(FOLDED):
            module = node.name.split("/backbone/")[1].rpartition("/")[0].replace("/", ".")
            yield f"{module}.weight", arrays[node.input[1]].T
    width = arrays[f"{BACKBONE}embeddings.cls_token"].shape[2]
    rows = [array for name, array in arrays.items() if name.startswith(FOLDED) and array.shape[::2] == (1, width)]
    yield POSITIONS, np.concatenate(sorted(rows, key=lambda array: array.shape[1]), axis=1)


def _place(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
