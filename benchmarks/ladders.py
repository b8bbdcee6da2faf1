"""Ladders for experiments: real models and public data, and `fedpeat ladder` run on them once, in the cache folder.

Nothing is measured here: what is read is the ladder.json that the command writes. A run that was stopped goes on; one
that is done is read again, until its levels, its settings, the exporter or the engine change. Then it is built anew,
and of its levels those are measured again whose manifests have changed.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import assets, studies, vision
from benchmarks.demo import write_toml
from benchmarks.fetch import say
from coordinator.ladder.run import Request, run
from coordinator.screen import Screen
from export.cache import cache_folder

BUDGET: Final = "2GB"  # of a tune's peak: enough for each of these models, so that all take their fastest plan
SPEAKER: Final = "theodore_roosevelt"
SIDE: Final = 56  # of images, in pixels: 17 tokens

Ladder = Mapping[str, Any]  # as docs/ladder.md describes ladder.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, and data to measure its levels on; `model`, `adapter` and `training` are tables of a coordinator's
    configuration. `held_out` rows are judged by, `public` ones levels are chosen and refitted by.

    The model has `layers` blocks, and all its weights together take `megabytes`, by bits. `factored` are names of FFN
    matrices, of width x neurons, either way round.
    """

    name: str
    title: str
    model: Mapping[str, Any]
    adapter: Mapping[str, Any]
    training: Mapping[str, Any]
    data: pathlib.Path
    held_out: int
    public: int
    layers: int
    megabytes: Mapping[int, float]
    width: int
    neurons: int
    factored: tuple[str, ...]


def speeches() -> Subject:
    """SmolLM2-135M on the speeches of one president. Raises FetchError."""
    folders = assets.speeches()
    return Subject(
        name="speeches",
        title="SmolLM2-135M on speeches",
        model={"dir": str(assets.smollm2()), "task": "causal-lm"},
        adapter={"kind": "lora", "rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]},
        training={"steps": 40, "batch": 1, "tokens": 64, "learning_rate": 1e-3},
        data=folders.get(SPEAKER, next(iter(folders.values()))),  # film reviews have other authors
        held_out=32,
        public=384,  # fewer tokens than an FFN has neurons say little of it, and bridges ask for more yet
        layers=30,
        megabytes={8: 135.4, 4: 75.8},
        width=576,
        neurons=1536,
        factored=("gate_proj", "up_proj", "down_proj"),
    )


def reviews() -> Subject:
    """MiniLM on Rotten Tomatoes. Raises FetchError."""
    return Subject(
        name="reviews",
        title="MiniLM-L6 on Rotten Tomatoes",
        model={"dir": str(assets.minilm()), "task": "sequence-classification", "labels": list(studies.LABELS)},
        adapter={"kind": "lora", "rank": 8, "alpha": 16, "targets": ["query", "value"]},
        # At a rate of 3e-3 without warm-up the full model itself learnt nothing with one of three seeds.
        training={"steps": 100, "batch": 16, "tokens": 48, "learning_rate": 1e-3, "warmup_steps": 10},
        data=assets.reviews().train,
        held_out=256,
        public=64,
        layers=6,
        megabytes={8: 23.0, 4: 12.9},
        width=384,
        neurons=1536,
        factored=("intermediate.dense",),
    )


def fashion() -> Subject:
    """ViT-S/14 on Fashion-MNIST, at images that are small enough to be quick. Raises FetchError."""
    return Subject(
        name="fashion",
        title="ViT-S/14 on Fashion-MNIST",
        model={
            "dir": str(vision.vit(SIDE)),
            "task": "image-classification",
            "labels": list(vision.FASHION_LABELS),
        },
        adapter={"kind": "lora", "rank": 8, "alpha": 16},  # on queries and values, by the family's own names
        training={"steps": 60, "batch": 16, "learning_rate": 2e-3},
        data=assets.fashion() / "train-images-idx3-ubyte.gz",
        held_out=256,
        public=64,
        layers=12,
        megabytes={8: 22.6, 4: 13.2},
        width=384,
        neurons=1536,
        factored=("mlp.fc1", "mlp.fc2"),
    )


SUBJECTS: Final = {"speeches": speeches, "reviews": reviews, "fashion": fashion}


def ladder(
    subject: Subject, levels: Sequence[Mapping[str, Any]], seed: int, experiment: str, *, keep: bool = False
) -> Ladder:
    """The ladder of these levels, measured unless it has been; `seed` draws rows and starting values, and orders them.

    With `keep` the artifact stays in `place(...) / "artifact"`. Raises CoordinatorError with what went wrong.
    """
    folder = place(subject, seed, experiment)
    folder.mkdir(parents=True, exist_ok=True)
    if (found := done(subject, levels, seed, experiment)) is not None and (not keep or (folder / "artifact").is_dir()):
        return found
    note = folder / "of.txt"
    digest = studies.digest_of(dataclasses.asdict(subject), levels, seed)
    if not note.is_file() or note.read_text("utf-8") != digest:
        shutil.rmtree(folder / "artifact", ignore_errors=True)  # made by another exporter, perhaps
        (folder / "ladder.json").unlink(missing_ok=True)
        note.write_text(digest, encoding="utf-8")
    say(f"{experiment}: {subject.title}, seed {seed}")
    write_toml(folder / "asked.toml", {"levels": list(levels)})
    run(_request(subject, seed, folder), Screen())
    if not keep:
        shutil.rmtree(folder / "artifact")  # gigabytes, and all that was to be known of it is
    return _read(folder)


def done(subject: Subject, levels: Sequence[Mapping[str, Any]], seed: int, experiment: str) -> Ladder | None:
    """The ladder where it has been measured as things are now, else None."""
    folder = place(subject, seed, experiment)
    files = [folder / "ladder.json", folder / "of.txt"]
    if not all(path.is_file() for path in files):
        return None
    digest = studies.digest_of(dataclasses.asdict(subject), levels, seed)
    return _read(folder) if files[1].read_text("utf-8") == digest else None


def shortened(subject: Subject, steps: int, held_out: int) -> Subject:
    """The same with fewer steps, and fewer rows to judge by."""
    return dataclasses.replace(subject, training={**subject.training, "steps": steps}, held_out=held_out)


def place(subject: Subject, seed: int, experiment: str) -> pathlib.Path:
    """The folder that a ladder is measured in."""
    return cache_folder() / "ladders" / f"{experiment}-{subject.name}-{seed}"


def _read(folder: pathlib.Path) -> Ladder:
    found: Ladder = json.loads((folder / "ladder.json").read_text("utf-8"))
    return found


def _request(subject: Subject, seed: int, folder: pathlib.Path) -> Request:
    return Request(
        tables={
            "name": "ladder",
            "fleet": "ladder",
            "out": str(folder),
            "model": subject.model,
            "adapter": subject.adapter,
            "rounds": {"count": 1, "devices": 1},
            "training": {**subject.training, "seed": seed},
            "public": {"path": str(folder / "split" / "public"), "rows": subject.public},
        },
        data=subject.data,
        text_column="text",
        label_column="label",
        held_out_rows=subject.held_out,
        levels=folder / "asked.toml",
        budget=BUDGET,
    )
