"""What the export's tests share: tiny models, and one artifact of each, built once."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import pytest

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import Manifest, TaskType
from edge_sdk.wire.tensors import Array, read_tensors
from export.adapters import AdapterRequest
from export.artifact import ArtifactWriter, staged, write_manifest
from export.foundation import open_foundation
from export.levels import LevelRequest, resolve_level
from export.program import Program, adapt, capture_program
from tests.models import tiny_bert, tiny_gpt2, tiny_llama

LEVELS = (
    LevelRequest("fp32", 32, None, None),
    LevelRequest("fp16", 16, None, None),
    LevelRequest("int8", 8, None, None),
    LevelRequest("int4", 4, None, None),
    LevelRequest("int8-2layers-last1", 8, 2, 1),
)
TASKS = {"llama": TaskType.CAUSAL_LM, "gpt2": TaskType.CAUSAL_LM, "bert": TaskType.SEQUENCE_CLASSIFICATION}
LABELS = {"llama": (), "gpt2": (), "bert": ("bad", "so-so", "good")}
TARGETS = {  # the family's own, and others
    "llama": ("q_proj", "up_proj"),
    "gpt2": ("c_attn", "c_proj"),
    "bert": ("query", "value"),
}


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


def export_tiny(family: str, model: pathlib.Path, folder: pathlib.Path) -> Exported:
    """Export the model folder with all levels of these tests, without measuring costs."""
    foundation = open_foundation(model, TASKS[family], LABELS[family])
    adapted = adapt(foundation, AdapterRequest("lora", 2, 4.0, TARGETS[family]), seed=0)
    program = capture_program(adapted, lambda _: None)
    with staged(folder) as store:
        writer = ArtifactWriter(program, store)
        manifests = {level.name: writer.write(resolve_level(level, foundation.spec.layers), 16) for level in LEVELS}
        for manifest in manifests.values():
            write_manifest(store.folder, manifest)
    return Exported(model, folder, program, manifests)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny Llama, as `save_pretrained` writes it."""
    return tiny_llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny GPT-2, as `save_pretrained` writes it."""
    return tiny_gpt2(tmp_path_factory.mktemp("gpt2") / "model")


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny BERT, as `save_pretrained` writes it."""
    return tiny_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="session")
def llama(tiny_llama_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny Llama's artifact."""
    return export_tiny("llama", tiny_llama_folder, tmp_path_factory.mktemp("llama") / "artifact")


@pytest.fixture(scope="session")
def gpt2(tiny_gpt2_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny GPT-2's artifact."""
    return export_tiny("gpt2", tiny_gpt2_folder, tmp_path_factory.mktemp("gpt2") / "artifact")


@pytest.fixture(scope="session")
def bert(tiny_bert_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny BERT's artifact."""
    return export_tiny("bert", tiny_bert_folder, tmp_path_factory.mktemp("bert") / "artifact")


@pytest.fixture(params=["llama", "gpt2", "bert"])
def exported(request: pytest.FixtureRequest) -> Exported:
    """Each family's artifact in turn."""
    found: Exported = request.getfixturevalue(request.param)
    return found
