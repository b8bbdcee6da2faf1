"""A vision transformer in an ONNX file becomes the model that it was."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

from benchmarks.onnx_dinov2 import POSITIONS, RENAMED, convert

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "mlp_ratio": 2,
    "image_size": 12,
}


def exported(path: pathlib.Path, model: Dinov2Model) -> pathlib.Path:
    """The weights as the package's file has them: products and positions folded, modules called as they once were."""
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    for name, value in model.state_dict().items():
        old = next((name.replace(new, was) for was, new in RENAMED.items() if new in name), name)
        folded = f"onnx::MatMul_{len(tensors)}"
        if name == POSITIONS:
            parts = {"onnx::Concat_1": value[:, :1], "onnx::Reshape_2": value[:, 1:]}
        elif value.ndim == 2:
            parts = {folded: value.T}
            module = old.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes.append(onnx.helper.make_node("MatMul", ["x", folded], ["y"], name=f"/backbone/{module}/MatMul"))
        else:
            parts = {f"backbone.{old}": value}
        tensors += [numpy_helper.from_array(part.numpy().copy(), key) for key, part in parts.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [], tensors)), path)
    return path


def test_the_folder_holds_the_files_model(tmp_path: pathlib.Path) -> None:
    """Sizes and every weight, and how its images are made."""
    model = Dinov2Model(Dinov2Config(**SIZES, patch_size=4, use_mask_token=False)).eval()
    convert(exported(tmp_path / "a.onnx", model), tmp_path / "folder", side=8)
    found = Dinov2Model.from_pretrained(tmp_path / "folder").eval()
    assert found.state_dict().keys() == model.state_dict().keys()
    pixels = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(found(pixels).last_hidden_state, model(pixels).last_hidden_state)
    said = json.loads((tmp_path / "folder" / "preprocessor_config.json").read_text())
    assert said["crop_size"] == {"height": 8, "width": 8}


def test_another_model_is_refused(tmp_path: pathlib.Path) -> None:
    """A file without such weights, and one that lacks a few: one line."""
    model = Dinov2Model(Dinov2Config(**SIZES, patch_size=4, use_mask_token=False))
    whole = onnx.load(exported(tmp_path / "a.onnx", model))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [])), tmp_path / "empty.onnx")
    del whole.graph.node[3:]
    onnx.save(whole, tmp_path / "few.onnx")
    for name in ("empty.onnx", "few.onnx"):
        with pytest.raises(ValueError, match=f"{name} holds no model of DINOv2's architecture") as refused:
            convert(tmp_path / name, tmp_path / "folder")
        assert "\n" not in str(refused.value)
