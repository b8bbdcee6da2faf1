"""What the export's tests share: tiny models, and one artifact of each, built once."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import Manifest, TaskType
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import AdapterRequest
from export.artifact import ArtifactWriter, staged, write_manifest
from export.evaluate import Images, Rows, Tokens
from export.foundation import Foundation, open_foundation
from export.levels import LevelRequest, resolve_level
from export.program import Program, adapt, capture_program
from tests.models import SPECIAL, VOCABULARY, tiny_model

LEVELS = (
    LevelRequest("fp32", 32, None, None),
    LevelRequest("fp16", 16, None, None),
    LevelRequest("int8", 8, None, None),
    LevelRequest("int4", 4, None, None),
    LevelRequest("int8-2layers-last1", 8, 2, 1),
)
LM, CLASSES, IMAGES = TaskType.CAUSAL_LM, TaskType.SEQUENCE_CLASSIFICATION, TaskType.IMAGE_CLASSIFICATION
TAGS = TaskType.TOKEN_CLASSIFICATION
OF_TEXT = {  # one model of each family: of which kind, for which task, with which targets where not the family's own
    "llama": ("llama", LM, ("q_proj", "up_proj")),
    "gpt2": ("gpt2", LM, ("c_attn", "c_proj")),
    "opt": ("opt", LM, ()),
    "gpt_neox": ("gpt_neox", LM, ()),
    "bert": ("bert", CLASSES, ()),
    "roberta": ("roberta", CLASSES, ()),
    "distilbert": ("distilbert", CLASSES, ()),
}
OF_IMAGES = {
    "vit": ("vit", IMAGES, ()),
    "deit": ("deit", IMAGES, ()),
    "dinov2": ("dinov2", IMAGES, ()),
}
FAMILIES = OF_TEXT | OF_IMAGES
VARIANTS = {  # their kin, encoders that classify tokens, and decoders that classify
    "mistral": ("mistral", LM, ()),
    "qwen2": ("qwen2", LM, ()),
    "qwen3": ("qwen3", LM, ("q_proj", "o_proj")),
    "opt-norm-behind": ("opt-norm-behind", LM, ("fc1", "fc2")),
    "gpt_neox-in-turn": ("gpt_neox-in-turn", LM, ("dense", "dense_4h_to_h")),
    "xlm-roberta": ("xlm-roberta", CLASSES, ("query",)),
    "camembert": ("camembert", CLASSES, ("key",)),
    "bert-tags": ("bert", TAGS, ()),
    "roberta-tags": ("roberta", TAGS, ()),
    "distilbert-tags": ("distilbert", TAGS, ()),
    "llama-classes": ("llama-biased", CLASSES, ("v_proj",)),
    "gpt2-classes": ("gpt2", CLASSES, ()),
    "opt-classes": ("opt-plain", CLASSES, ()),
    "gpt_neox-classes": ("gpt_neox", CLASSES, ()),
    "dinov2-gated": ("dinov2-gated", IMAGES, ("o_proj", "gate_proj")),
}
LABELS = ("bad", "so-so", "good")
HERE = pathlib.Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks for groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one model run in one process: exporting it takes longer than most of them."""
    for item in items:
        if HERE in item.path.parents and item.config.pluginmanager.hasplugin("xdist"):
            for name in [name for name in _names(item) if name in FAMILIES | VARIANTS][:1]:
                item.add_marker(pytest.mark.xdist_group(name), append=False)


def _names(item: pytest.Item) -> Iterator[str]:
    """Whatever may be a model's name among the test's parameters, then among its fixtures."""
    for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
        yield from [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, str)]
    yield from getattr(item, "fixturenames", ())


@dataclass(frozen=True, slots=True)
class Exported:
    """A tiny model, captured, and an artifact of it with the levels above."""

    model: pathlib.Path
    folder: pathlib.Path
    program: Program
    manifests: dict[str, Manifest]

    @property
    def store(self) -> BlobStore:
        """The artifact's blobs."""
        return BlobStore(self.folder)

    def initial_adapter(self, level: str = "fp32") -> dict[str, Array]:
        """The adapter's starting values, as the level's manifest names them."""
        manifest = self.manifests[level]
        return read_tensors(self.store.path(manifest.files[manifest.adapter.initial].sha256))


def export_tiny(
    name: str, model: pathlib.Path, folder: pathlib.Path, adapter: AdapterRequest | None = None
) -> Exported:
    """Export a model folder, of one of the models above, with all levels of these tests, without measuring costs.

    The adapter is LoRA's on the targets above unless another is given.
    """
    _, task, targets = (FAMILIES | VARIANTS)[name]
    foundation = open_foundation(model, task, () if task is LM else LABELS)
    request = (adapter or AdapterRequest("lora", 2, 4.0, targets)).resolved(foundation)
    program = capture_program(adapt(foundation, request, seed=0), lambda _: None)
    layers = foundation.spec.layers
    with staged(folder) as store:
        writer = ArtifactWriter(program, store)
        levels = [resolve_level(level, layers, request.layers_of(layers)) for level in LEVELS]
        manifests = {level.name: writer.write(level, 16) for level in levels}
        for manifest in manifests.values():
            write_manifest(store.folder, manifest)
    return Exported(model, folder, program, manifests)


def public_rows(rows: int = 3, tokens: int = 12) -> Tokens:
    """Public data: rows of drawn tokens, of many lengths up to `tokens`."""
    ids = np.random.default_rng(0).integers(SPECIAL, VOCABULARY, (rows, tokens))
    return Tokens(ids, tokens - np.arange(rows) % (tokens - 1), np.zeros(0, np.int64))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def public_for(foundation: Foundation, rows: int = 3) -> Rows:
    """Public data that the model reads: drawn tokens, or drawn images."""
    if foundation.spec.image is None:
        return public_rows(rows)
    pixels = np.random.default_rng(0).integers(0, 256, (rows, *foundation.spec.image.shape), np.uint8)
    return Images(pixels, np.zeros(rows, np.int64), foundation.spec.image)


class Exports:
    """The models above: model folders and artifacts, each made when it is first asked for."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Make them below `folder`."""
        self._folder = folder
        self._exported: dict[tuple[str, AdapterRequest | None], Exported] = {}

    def model(self, name: str) -> pathlib.Path:
        """The model folder, as `save_pretrained` writes it."""
        folder = self._folder / name
        return folder if folder.exists() else tiny_model((FAMILIES | VARIANTS)[name][0], folder)

    def __getitem__(self, name: str) -> Exported:
        """The artifact."""
        return self.of(name, None)

    def of(self, name: str, adapter: AdapterRequest | None) -> Exported:
        """The artifact with another adapter."""
        if (name, adapter) not in self._exported:
            folder = self._folder / f"{name}-{adapter.kind if adapter else 'artifact'}"
            self._exported[name, adapter] = export_tiny(name, self.model(name), folder, adapter)
        return self._exported[name, adapter]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """All of them."""
    return Exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="session")
def tiny_llama_folder(exports: Exports) -> pathlib.Path:
    """A tiny Llama, as `save_pretrained` writes it."""
    return exports.model("llama")


@pytest.fixture(scope="session")
def tiny_bert_folder(exports: Exports) -> pathlib.Path:
    """A tiny BERT, as `save_pretrained` writes it."""
    return exports.model("bert")


@pytest.fixture(scope="session")
def llama(exports: Exports) -> Exported:
    """A tiny Llama's artifact."""
    return exports["llama"]


@pytest.fixture(scope="session")
def gpt2(exports: Exports) -> Exported:
    """A tiny GPT-2's artifact."""
    return exports["gpt2"]


@pytest.fixture(scope="session")
def bert(exports: Exports) -> Exported:
    """A tiny BERT's artifact."""
    return exports["bert"]


@pytest.fixture(params=FAMILIES)
def exported(request: pytest.FixtureRequest, exports: Exports) -> Exported:
    """Each family's artifact in turn."""
    return exports[request.param]


@pytest.fixture(params=OF_TEXT)
def exported_text(request: pytest.FixtureRequest, exports: Exports) -> Exported:
    """Each family's artifact in turn, of those that read text."""
    return exports[request.param]


@pytest.fixture(params=[name for name, (_, task, _) in (FAMILIES | VARIANTS).items() if task is not IMAGES])
def any_exported_text(request: pytest.FixtureRequest, exports: Exports) -> Exported:
    """The artifact of every model of text in turn."""
    return exports[request.param]


@pytest.fixture(params=[*FAMILIES, *VARIANTS])
def any_exported(request: pytest.FixtureRequest, exports: Exports) -> Exported:
    """The artifact of every model in turn."""
    return exports[request.param]
