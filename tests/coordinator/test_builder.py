"""The artifact is built once per request, and what is on disk is checked before it is used."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from coordinator.builder import (
    RECORD,
    build,
    check_initial,
    is_built,
    load_artifact,
    record_of,
    request_of,
)
from coordinator.config import Config, LevelConfig, PublicConfig
from coordinator.errors import ConfigError, JobError
from coordinator.jobs import Jobs
from coordinator.places import artifact_folder
from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import LevelSpec, Manifest, encode_manifest
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.tensors import write_tensors
from tests.coordinator.samples import WIDTH, make_adapter, make_config, make_manifest


def built(tmp_path: pathlib.Path, *, layers: int = 2) -> Config:
    """A configuration whose artifact is on disk, as the exporter would have left it, its adapter of `layers` layers."""
    config = make_config(tmp_path)
    config.model.dir.mkdir()
    (config.model.dir / "config.json").write_text("{}")
    folder = artifact_folder(config)
    store = BlobStore(folder)
    store.put(b"")
    write_tensors(folder / "initial", make_adapter(layers))
    initial = store.adopt(folder / "initial")
    for name, trained in (("large", (0, 1)), ("small", (1,))):
        manifest = make_manifest(name, trained, 100, initial=initial)
        (folder / f"{name}.manifest").write_bytes(encode_manifest(manifest))
    (folder / RECORD).write_text(json.dumps(record_of(config)))
    return config


def test_what_is_built_is_not_built_again(tmp_path: pathlib.Path, jobs: Jobs) -> None:
    """With the record and every file in place no process is started, and the levels come in the configured order."""
    config = built(tmp_path)
    artifact = build(config, jobs, print)
    assert list(artifact.levels) == ["large", "small"]
    assert artifact.store.read(artifact.levels["small"].blob)
    check_initial(artifact)


def test_levels_of_one_model_are_told_by_what_trains(tmp_path: pathlib.Path) -> None:
    """A policy sees which levels differ in nothing but their trained layers, and how large their deltas are."""
    levels = load_artifact(built(tmp_path)).levels.values()
    large, small = (level.level(2, 16) for level in levels)
    assert large.model == small.model
    assert (large.trained_layers, small.trained_layers) == (2, 1)
    fp32, int4 = (
        (large.upload_bytes[codec], small.upload_bytes[codec]) for codec in (DeltaCodec.FP32, DeltaCodec.INT4)
    )
    assert fp32[0] == 2 * fp32[1] > 4 * int4[1] > 0
    assert sum(large.files.values()) == large.size_bytes


def test_another_request_is_built_anew(tmp_path: pathlib.Path) -> None:
    """Another rank, start or level, a changed model or public data is another artifact; another learning rate, none."""
    config = built(tmp_path)
    rank = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, rank=4))
    start = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, start=tmp_path))
    level = dataclasses.replace(config, levels=(*config.levels, LevelConfig(name="tiny")))
    rate = dataclasses.replace(config, training=dataclasses.replace(config.training, learning_rate=0.5))
    (tmp_path / "public").mkdir()
    public = dataclasses.replace(config, public=PublicConfig(path=tmp_path / "public"))
    assert [is_built(c) for c in (config, rank, start, level, rate, public)] == [True, *[False] * 3, True, False]
    (artifact_folder(config) / RECORD).write_text(json.dumps(record_of(public)))
    assert is_built(public)
    (tmp_path / "public" / "text.txt").write_text("other public data")
    assert not is_built(public)
    (artifact_folder(config) / RECORD).write_text(json.dumps(record_of(config)))
    (config.model.dir / "config.json").write_text("{ }")
    assert not is_built(config)


def test_a_missing_file_is_noticed(tmp_path: pathlib.Path) -> None:
    """An artifact that lost a blob or a manifest is built again."""
    config = built(tmp_path)
    blob = load_artifact(config).initial_adapter()
    path = BlobStore(artifact_folder(config)).path(blob.sha256)
    kept = path.read_bytes()
    path.unlink()
    assert not is_built(config)
    path.write_bytes(kept)
    (artifact_folder(config) / "small.manifest").unlink()
    assert not is_built(config)


def test_a_folder_that_is_not_there_is_said(tmp_path: pathlib.Path, jobs: Jobs) -> None:
    """The model's, or the one to start from, is named before anything is written."""
    config = make_config(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.dir is .*, which is no folder"):
        build(config, jobs, print)
    config.model.dir.mkdir()
    adapter = dataclasses.replace(config.adapter, start=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"adapter\.start is .*, which is no folder"):
        build(dataclasses.replace(config, adapter=adapter), jobs, print)
    assert not artifact_folder(config).exists()


def test_the_exporters_complaint_comes_through(tmp_path: pathlib.Path, jobs: Jobs) -> None:
    """A model that cannot be exported ends the build with the exporter's own line, and no record is left."""
    config = make_config(tmp_path)
    config.model.dir.mkdir()
    with pytest.raises(JobError, match=r"export\.cli build ended with status 2: .+"):
        build(config, jobs, print)
    assert not (artifact_folder(config) / RECORD).exists()


def test_starting_values_must_cover_every_level(tmp_path: pathlib.Path) -> None:
    """An initial adapter that lacks a layer is refused before any device trains."""
    config = built(tmp_path, layers=1)
    with pytest.raises(JobError, match=r"needs the adapter tensor block\.1/q\.lora_A"):
        check_initial(load_artifact(config))


def at_rank_one(manifest: Manifest) -> Manifest:
    """The level with LoRA factors of one dimension."""
    block = dataclasses.replace(manifest.structures["block"], trained={"q.lora_A": (1, WIDTH), "q.lora_B": (WIDTH, 1)})
    return dataclasses.replace(
        manifest,
        adapter=dataclasses.replace(manifest.adapter, rank=1),
        structures={**manifest.structures, "block": block},
    )


def test_a_level_may_have_a_lower_rank(tmp_path: pathlib.Path) -> None:
    """Starting values cover it when they are cut; the whole adapter is a level's with all layers and no lower rank."""
    config = built(tmp_path)
    folder, manifests = artifact_folder(config), load_artifact(config).levels
    small, large = (at_rank_one(manifests[name].manifest) for name in ("small", "large"))
    (folder / "small.manifest").write_bytes(encode_manifest(small))
    artifact = load_artifact(config)
    check_initial(artifact)
    assert artifact.lower_ranks() == {"small": 1}
    assert artifact.full.manifest.level.name == "large"
    (folder / "large.manifest").write_bytes(encode_manifest(large))
    (folder / "small.manifest").write_bytes(
        encode_manifest(dataclasses.replace(manifests["small"].manifest, level=LevelSpec("small", (1,), (1,), 32)))
    )
    with pytest.raises(JobError, match="no level keeps all layers at the adapter's own rank"):
        load_artifact(config)


def test_the_request_says_all_layers_as_null(tmp_path: pathlib.Path) -> None:
    """Zero, all of them, is null for the exporter; paths and numbers are plain JSON."""
    request = json.loads(json.dumps(request_of(make_config(tmp_path))))
    level = {"name": "large", "bits": 32, "layers": None, "train_last": None, "rank": None, "drop": "uniform"}
    surgery = {"ffn": 1.0, "svd": [], "svd_rank": 0}
    refit = {"refit": "none", "distill_steps": 100, "distill_rate": None}
    assert request["levels"][0] == {**level, **surgery, **refit, "tensors_mb": None}
    assert request["levels"][1]["train_last"] == 1
    assert np.isclose(request["adapter"]["alpha"], 16.0)
