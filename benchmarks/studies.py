"""What the demo and the benchmarks study: a model, its levels, and five devices with their own data and budgets."""

from __future__ import annotations

import csv
import hashlib
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import assets
from benchmarks.fetch import STANDARD_ERROR, say
from edge_sdk.wire.errors import last_line
from export.cache import cache_folder

TOKENS = 128
PRESIDENTS = ("ulysses_s_grant", "grover_cleveland", "andrew_jackson", "james_buchanan", "zachary_taylor")
HELD_OUT_PRESIDENT = "rutherford_b_hayes"
LABELS = ("negative", "positive")
REVIEWS_PER_DEVICE = 600
Row = tuple[str, str]
POSITIVE_SHARES = (0.5, 0.7, 0.3, 0.8, 0.5)  # label skew: no two devices see the same reviewers


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the demo: `quota` bounds its store, `data` is the `[data]` table of its configuration."""

    name: str
    budget: str
    quota: str
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Study:
    """One run of the demo; the mappings are tables of the coordinator's configuration."""

    name: str
    model: Mapping[str, Any]
    adapter: Mapping[str, Any]
    levels: Sequence[Mapping[str, Any]]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    devices: Sequence[Device]


def speeches_study() -> Study:
    """SmolLM2-135M on State of the Union speeches: one president a device, a sixth one held out."""
    folders = assets.speeches()
    names = [*PRESIDENTS, HELD_OUT_PRESIDENT]
    if not set(names) <= folders.keys():  # movie reviews in their place, where npm is missing
        names = sorted(folders)[: len(names)]
    budgets = ("640MB", "320MB", "256MB", "128MB", "64MB")
    # fp32 takes 544 MB of disk, int8 141 MB: the column "down MB" of the demo's table shows both.
    quotas = ("2GB", "2GB", "400MB", "400MB", "400MB")
    return Study(
        name="speeches",
        model={"dir": str(assets.smollm2()), "task": "causal-lm"},
        adapter={"kind": "lora", "rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]},
        levels=(
            {"name": "fp32", "bits": 32},
            {"name": "int8", "bits": 8},
            # The share of the gap that it closes, as benchmarks/results/controller-ladder.json has it.
            {"name": "int8-last6", "bits": 8, "train_last": 6, "quality": 0.3},
        ),
        training={"steps": 6, "batch": 1, "tokens": TOKENS, "learning_rate": 3e-3, "warmup_steps": 2},
        evaluation={"kind": "text-folder", "path": str(folders[names[-1]]), "rows": 16},
        devices=[
            Device(name.replace("_", "-"), budget, quota, {"kind": "text-folder", "path": str(folders[name])})
            for name, budget, quota in zip(names[:-1], budgets, quotas, strict=True)
        ],
    )


def reviews_study(folder: pathlib.Path) -> Study:
    """MiniLM on Rotten Tomatoes: each device has reviews of its own, mixed differently. Their files go to `folder`."""
    reviews = assets.reviews()
    held_out = folder / "held-out.csv"
    write_reviews(held_out, read_reviews(reviews.test))
    devices = []
    budgets = ("320MB", "192MB", "160MB", "128MB", "48MB")
    quotas = ("1GB", "1GB", "80MB", "1GB", "1GB")  # the third one's disk has no room for fp32
    parts = _split_by_device(read_reviews(reviews.train))
    for k, (part, budget, quota) in enumerate(zip(parts, budgets, quotas, strict=True), 1):
        path = folder / f"cinema-{k}.csv"
        write_reviews(path, part)
        table = {"kind": "csv", "path": str(path), "text_column": "text", "label_column": "label"}
        devices.append(Device(f"cinema-{k}", budget, quota, table))
    return Study(
        name="reviews",
        model={"dir": str(assets.minilm()), "task": "sequence-classification", "labels": list(LABELS)},
        adapter={"kind": "lora", "rank": 8, "alpha": 16, "targets": ["query", "value"]},
        levels=(
            {"name": "fp32", "bits": 32},
            {"name": "int8", "bits": 8},
            {"name": "int8-last2", "bits": 8, "train_last": 2},
        ),
        training={"steps": 16, "batch": 16, "tokens": 64, "learning_rate": 3e-3, "warmup_steps": 2},
        evaluation={"kind": "csv", "path": str(held_out), "rows": 256},
        devices=devices,
    )


def read_reviews(path: pathlib.Path) -> list[Row]:
    """Text and name of the label, of each row of a table with the labels 0 and 1."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], LABELS[int(row["label"])]) for row in csv.DictReader(file)]


def write_reviews(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """A table of text and name of the label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def _split_by_device(rows: Sequence[Row]) -> list[list[Row]]:
    """Disjoint rows for each device, with its own share of positive ones; the same split every time."""
    positive, negative = ([row for row in rows if row[1] == label] for label in reversed(LABELS))
    parts = []
    for k, share in enumerate(POSITIVE_SHARES):
        wanted = round(share * REVIEWS_PER_DEVICE)
        part = [positive.pop() for _ in range(wanted)] + [negative.pop() for _ in range(REVIEWS_PER_DEVICE - wanted)]
        random.Random(k).shuffle(part)  # noqa: S311 - a fixed order, not a secret
        parts.append(part)
    return parts


def artifact_of(study: Study) -> pathlib.Path:
    """The study's levels as artifacts, built once and kept in the cache folder.

    Raises RuntimeError with the exporter's own words when the build fails.
    """
    request = request_of(study.model, study.adapter, study.levels, study.training["tokens"], parity=True)
    out = place_of(request, cache_folder() / "artifacts")
    if not out.is_dir():
        build(request, out)
    return out


def request_of(
    model: Mapping[str, Any],
    adapter: Mapping[str, Any],
    levels: Sequence[Mapping[str, Any]],
    tokens: int,
    *,
    parity: bool,
) -> dict[str, Any]:
    """A request for `export build` of tables of the coordinator's configuration; where to is left open."""
    levels = [{"layers": None, "train_last": None, **level} for level in levels]
    request = {"model": model["dir"], "task": model["task"], "adapter": adapter, "levels": levels}
    return request | {"labels": model.get("labels", []), "tokens": tokens, "parity": parity, "seed": 0}


def place_of(request: Mapping[str, Any], under: pathlib.Path) -> pathlib.Path:
    """The folder under `under` for what this exporter makes of `request`: another exporter's has another name."""
    return under / digest_of(request)[:16]


def newest(name: str, request: Mapping[str, Any]) -> pathlib.Path:
    """The artifact of `request`, built once under `name` in the cache folder.

    What an earlier state of the exporter or the engine has made there is deleted, for it may have gigabytes. Raises
    RuntimeError with the exporter's own words when the build fails.
    """
    out = place_of(request, cache_folder() / "artifacts" / name)
    if not out.is_dir():
        shutil.rmtree(out.parent, ignore_errors=True)
        say(f"exporting {name}")
        build(request, out)
    return out


def digest_of(*asked: object) -> str:
    """Of what was asked for, and of who does it: the exporter and the engine, whose costs an artifact carries."""
    return hashlib.sha256(json.dumps([*asked, _source_digest()], sort_keys=True, default=str).encode()).hexdigest()


def _source_digest() -> str:
    root = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("export/**/*.py"), *root.glob("edge_sdk/**/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(request: Mapping[str, Any], out: pathlib.Path) -> None:
    """Export into `out`, which appears when all is there. Raises RuntimeError with the exporter's own words."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = pathlib.Path(name)
        asked = folder / "request.json"
        asked.write_text(json.dumps({**request, "out": str(folder / "artifact")}), encoding="utf-8")
        command = [sys.executable, "-m", "export.cli", "build", str(asked)]
        done = subprocess.run(command, stdout=STANDARD_ERROR, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(last_line(done.stderr, "the export failed without a word"))
        shutil.move(folder / "artifact", out)
