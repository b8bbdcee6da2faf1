"""Images for experiments: data sets as arrays, and the ViT for images that are small enough to be quick."""

from __future__ import annotations

import json
import os
import pathlib
from dataclasses import dataclass

import numpy as np

from benchmarks import assets, fleet, partition
from edge_sdk.config import DataConfig, DataKind
from edge_sdk.data import map_image_folder, write_image_folder
from edge_sdk.prepare import prepare
from edge_sdk.sources import open_source
from edge_sdk.wire.manifest import ImageSpec
from edge_sdk.wire.tensors import Array
from export.cache import cache_folder, cached

HELD_OUT_SHARE = 0.2  # of a data set that comes in one piece
FASHION_LABELS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
TEXTILE_LABELS = ("nominal", "global", "local")


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images (rows, channels, height, width) uint8, and the class of each."""

    pixels: Array
    labels: Array

    def __len__(self) -> int:
        """How many."""
        return len(self.pixels)

    def __getitem__(self, rows: Array | slice) -> Pictures:
        """Some of them."""
        return Pictures(self.pixels[rows], self.labels[rows])

    def some(self, count: int, seed: int) -> Pictures:
        """So many, drawn without replacement; all where there are no more."""
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self[np.sort(drawn)]


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a model learns from and what it is tested on, and the names of the classes."""

    name: str
    labels: tuple[str, ...]
    train: Pictures
    test: Pictures


def fashion(side: int) -> DataSet:
    """Fashion-MNIST, 60,000 and 10,000 grey images of 28 x 28; devices stretch them to `side`. Raises FetchError."""
    folder = assets.fashion()
    train, test = (
        _pictures(DataConfig(kind=DataKind.IDX, path=folder / f"{part}-images-idx3-ubyte.gz"), FASHION_LABELS, side)
        for part in ("train", "t10k")
    )
    return DataSet("fashion-mnist", FASHION_LABELS, train, test)


def textile(side: int) -> DataSet:
    """Fabric with and without defects, 1,600 and 400 coloured images of side x side. Raises FetchError."""
    whole = _pictures(DataConfig(kind=DataKind.IMAGE_FILES, path=assets.textile()), TEXTILE_LABELS, side)
    mixed = np.random.default_rng(0).permutation(len(whole))
    tests = round(HELD_OUT_SHARE * len(whole))
    return DataSet("textile", TEXTILE_LABELS, whole[np.sort(mixed[tests:])], whole[np.sort(mixed[:tests])])


def _pictures(config: DataConfig, labels: tuple[str, ...], side: int) -> Pictures:
    """As the device's own preparation makes them, once, in the cache folder."""
    spec = ImageSpec(3, side, side)
    out = cache_folder() / "pictures" / f"{config.path.name}-{side}"
    out.parent.mkdir(parents=True, exist_ok=True)
    prepare(open_source(config, labels, spec), None, tokens=1, out=out, labels=labels, image=spec)
    return Pictures(*map_image_folder(out))


def deal(pictures: Pictures, devices: int, alpha: float, seed: int, folder: pathlib.Path) -> list[fleet.Member]:
    """All of them to `devices`, each with its own in a folder under `folder`, by label skew."""
    members = []
    for k, rows in enumerate(partition.by_label(pictures.labels, devices, alpha, seed)):
        name, own = f"device-{k:02}", pictures[rows]
        write_image_folder(folder / name, own.pixels, own.labels)
        members.append(fleet.Member(name, DataConfig(kind=DataKind.IMAGE_ARRAYS, path=folder / name)))
    return members


def vit(side: int) -> pathlib.Path:
    """`assets.vit` for images of side x side pixels, in patches of 14 x 14: the same weights, other positions.

    Raises FetchError.
    """
    whole = assets.vit()

    def build(folder: pathlib.Path) -> None:
        for path in whole.iterdir():
            os.link(path, folder / path.name)
        said = folder / "preprocessor_config.json"
        preprocessor = json.loads(said.read_text(encoding="utf-8"))
        said.unlink()  # a link to the whole one's
        crop = {"crop_size": {"height": side, "width": side}}
        said.write_text(json.dumps(preprocessor | crop), encoding="utf-8")

    return cached(whole.with_name(f"{whole.name}-side-{side}"), build)
