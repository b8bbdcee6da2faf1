"""Images in parts of a model: what vision families share, from the bytes of pixels to the classifier.

A device sends bytes into the graphs, and nothing else: how they are scaled is in the embedding, as the model folder's
preprocessor_config.json says it. https://arxiv.org/abs/2010.11929
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from edge_sdk.wire.manifest import ImageSpec
from export.errors import ExportError
from export.parts import Part

PREPROCESSOR: Final = "preprocessor_config.json"
BYTE: Final = 255


class Scaling(NamedTuple):
    """A byte b of channel c becomes b * scale[c] + shift[c]."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Numbers as the model takes them, of `pixels` (batch, channels, height, width) uint8."""
        scale, shift = (torch.tensor(one)[:, None, None] for one in (self.scale, self.shift))
        return pixels.to(torch.float32) * scale + shift


def scaled(model: nn.Module, pixels: Tensor) -> Tensor:
    """`pixels` (batch, channels, height, width) uint8 as a vision model of transformers takes them."""
    config: Any = model.config
    found: Tensor = config.scaling(pixels)
    return found


class Preprocessor(NamedTuple):
    """What a folder says of its images: how bytes are scaled; height and width, None where that is left open."""

    scaling: Scaling
    size: tuple[int, int] | None


def read_preprocessor(folder: pathlib.Path, channels: int) -> Preprocessor:
    """What becomes of an image before the model in `folder` sees it. Raises ExportError where that is not said."""
    path = folder / PREPROCESSOR
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        rescale = float(plain.get("rescale_factor") or 1 / BYTE) if plain.get("do_rescale", True) else 1.0
        normalizes = plain.get("do_normalize", True)
        mean, std = (
            [float(value) for value in plain[name]] if normalizes else [default] * channels
            for name, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        size = _size(plain.get("crop_size") if plain.get("do_center_crop", True) else None) or _size(plain.get("size"))
    except OSError as error:
        msg = f"cannot read {path}, which says how pixels are scaled: {error.strerror}"
        raise ExportError(msg) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"{path} does not say how pixels are scaled: {type(error).__name__}: {error}"
        raise ExportError(msg) from error
    if len(mean) != channels or len(std) != channels or not all(std):
        msg = f"{path} has image_mean {mean} and image_std {std}, the model has {channels} channels"
        raise ExportError(msg)
    scale = tuple(rescale / s for s in std)
    return Preprocessor(Scaling(scale, tuple(-m / s for m, s in zip(mean, std, strict=True))), size)


def _size(plain: Any) -> tuple[int, int] | None:  # noqa: ANN401 - JSON
    if isinstance(plain, Mapping) and {"height", "width"} <= plain.keys():
        return int(plain["height"]), int(plain["width"])
    return (plain, plain) if isinstance(plain, int) else None  # of a shortest edge alone the other one is left open


def see_images(config: Any, folder: pathlib.Path) -> ImageSpec:  # noqa: ANN401 - transformers' are typed by attribute
    """The images that the model in `folder` takes; `config` gets their size, `trained_size` and `scaling`.

    Where the preprocessor makes them of another size than the model's positions were trained for, as DINOv2's does,
    `stretch_positions` is for the loaded model. Raises ExportError.
    """
    found = read_preprocessor(folder, config.num_channels)
    config.trained_size = both(config.image_size)
    config.image_size = list(found.size or config.trained_size)
    config.scaling = found.scaling
    try:
        return ImageSpec(config.num_channels, *config.image_size)
    except ValueError as error:
        msg = f"{folder}: {error}"
        raise ExportError(msg) from error


def stretch_positions(backbone: Any) -> None:  # noqa: ANN401
    """Positions for the images that the configuration says, of those that it was trained for: bicubically, as
    transformers does it for DINOv2, and for others when it is told to.
    """
    config, embeddings = backbone.config, backbone.embeddings
    before = embeddings.position_embeddings.shape[1] - math.prod(_grid(config, config.trained_size))
    first, patches = embeddings.position_embeddings.data.split([before, patches_of(config, config.trained_size)], dim=1)
    grid = patches.unflatten(1, _grid(config, config.trained_size)).permute(0, 3, 1, 2)
    stretched = nn.functional.interpolate(grid, _grid(config, config.image_size), mode="bicubic", align_corners=False)
    positions = torch.cat([first, stretched.flatten(2).transpose(1, 2)], dim=1)
    embeddings.position_embeddings = nn.Parameter(positions)
    embeddings.image_size = embeddings.patch_embeddings.image_size = tuple(config.image_size)


def patches_of(config: Any, size: Iterable[int] | None = None) -> int:  # noqa: ANN401
    """How many patches an image is cut into, one of `size` where that is not the configuration's own."""
    return math.prod(_grid(config, config.image_size if size is None else size))


def _grid(config: Any, size: int | Iterable[int]) -> tuple[int, int]:  # noqa: ANN401
    """How many patches fit down and across."""
    (height, width), (down, across) = both(size), both(config.patch_size)
    return height // down, width // across


def no_context(_backbone: Any, _attention_mask: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
    """Nothing: all images are of one length, and every patch sees all."""
    return {}


def both(size: int | Iterable[int]) -> tuple[int, int]:
    """Height and width, of a configuration that has one number for both, or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class Patches(nn.Module):
    """Pixels to hidden state: scaled, cut into patches, behind the tokens that stand for the whole image; positions.

    Of `embeddings` it takes what an image needs: neither dropout, nor the token that masks patches in pre-training.
    """

    def __init__(self, embeddings: Any, scaling: Scaling) -> None:  # noqa: ANN401
        """Share the parameters."""
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scaling.scale), requires_grad=False)
        self.shift = nn.Parameter(torch.tensor(scaling.shift), requires_grad=False)
        self.projection: nn.Module = embeddings.patch_embeddings.projection
        self.cls_token: nn.Parameter = embeddings.cls_token
        if hasattr(embeddings, "distillation_token"):
            self.distillation_token: nn.Parameter = embeddings.distillation_token
        self.position_embeddings: nn.Parameter = embeddings.position_embeddings

    def forward(self, pixels: Tensor) -> Tensor:
        """Hidden state (batch, tokens, width) of `pixels` (batch, channels, height, width) uint8."""
        scaled = pixels.to(torch.float32) * self.scale[:, None, None] + self.shift[:, None, None]
        patches = self.projection(scaled).flatten(2).transpose(1, 2)
        first = [self.cls_token, *([self.distillation_token] if hasattr(self, "distillation_token") else [])]
        before = [token.expand(pixels.shape[0], -1, -1) for token in first]
        return torch.cat([*before, patches], dim=1) + self.position_embeddings


def embed_patches(backbone: Any, _first: int) -> Part:  # noqa: ANN401
    """The embedding of a vision model, whose configuration has the folder's `scaling`, see `export.foundation`."""
    return Part(Patches(backbone.embeddings, backbone.config.scaling))


class FirstToken(nn.Module):
    """The classifier of a `ForImageClassification`: on the hidden state of the first token."""

    def __init__(self, classifier: nn.Module) -> None:
        """Share the module."""
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of the hidden state (batch, tokens, width)."""
        logits: Tensor = self.classifier(x[:, 0])
        return logits


def classify_first_token(model: Any) -> Part:  # noqa: ANN401
    """The head of a vision model."""
    return Part(FirstToken(model.classifier))
