"""Several emulator levels of one model in one process: loaded once, captured once, written into one folder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.manifest import LevelSpec, Manifest, ModelSpec, TaskType
from export.adapters import AdapterRequest
from export.artifact import ArtifactWriter, staged, write_manifest
from export.compress.depth import uniform_layers
from export.compress.importance import block_influence, most_influential
from export.compress.mixed import with_mixed_bits
from export.errors import ExportError
from export.evaluate import Tokens
from export.folder import read_manifest
from export.foundation import Foundation, open_foundation
from export.levels import Drop, LevelRequest, resolve_level
from export.measure import measure
from export.parity import Oracle, Parity, check_parity, emulator, integers_error, require_parity
from export.program import Program, adapt, capture_program
from export.progress import Progress, Report
from export.public import PublicRequest, read_public


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. `targets` of the adapter may be empty: the family's own. `tokens` is where costs are measured.

    `public` is the data that some levels are chosen or refitted by, None where no level is.
    """

    model: pathlib.Path
    task: TaskType
    out: pathlib.Path
    adapter: AdapterRequest
    levels: tuple[LevelRequest, ...]
    labels: tuple[str, ...]
    tokens: int
    parity: bool
    seed: int
    public: PublicRequest | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """A finished level; `parity` is None where it was not checked."""

    manifest: Manifest
    parity: Parity | None


class Stages:
    """Numbers the stages of a build, `of` them in all, as they begin."""

    def __init__(self, report: Report, of: int) -> None:
        """None has begun."""
        self._report, self._of, self._numbers = report, of, itertools.count()

    def begin(self, stage: str, level: str = "") -> None:
        """The next stage begins."""
        self._report(Progress(stage, level, next(self._numbers), self._of))

    def begin_parts(self, stage: str) -> Callable[[str], None]:
        """The next stage begins, part by part; what is returned is told the name of each."""
        number = next(self._numbers)
        return lambda name: self._report(Progress(f"{stage} {name}", "", number, self._of))


def build(request: BuildRequest, report: Report) -> tuple[Built, ...]:
    """Build all levels; the folder changes when all of them are done, or not at all.

    Levels that are alike in their surgery share one captured program.

    Raises:
        ExportError: what was asked for cannot be done.
        ParityError: a level's gradients are not the model's.
    """
    foundation = open_foundation(request.model, request.task, request.labels)
    _require_possible(request, foundation)
    adapter = _with_targets(request.adapter, foundation)
    _require_same(request, foundation.spec, adapter)
    stages = Stages(report, _count_stages(request))
    built: dict[str, Built] = {}
    with staged(request.out) as store:  # first of all: a folder that cannot be written is said at once
        public = _read_public(request, foundation, stages)
        levels = _resolve(request, foundation, public, stages)
        for surgery in dict.fromkeys(level.surgery for level in levels):
            stages.begin("load")
            adapted = adapt(foundation, adapter, request.seed, surgery, public)
            program = capture_program(adapted, stages.begin_parts("capture"))
            writer, oracle = ArtifactWriter(program, store), Oracle(adapted, request.seed)
            for asked, level in zip(request.levels, levels, strict=True):
                if level.surgery == surgery:
                    chosen = _with_bits(program, level, asked, public, stages)
                    built[level.name] = _build_level(writer, oracle, chosen, request, stages)
        for one in built.values():
            _require_same(request, foundation.spec, adapter, one.manifest.files[one.manifest.adapter.initial])
    return tuple(built[level.name] for level in levels)


def _with_bits(
    program: Program, level: LevelSpec, asked: LevelRequest, public: Tokens | None, stages: Stages
) -> LevelSpec:
    """The level with bits for each of its parts, where its tensors have a bound."""
    if asked.tensors_mb is None:
        return level
    if public is None:  # it was refused
        raise AssertionError
    stages.begin("sensitivity", level.name)
    model, _ = emulator(program.adapted, level)
    return with_mixed_bits(program, level, model.get_base_model(), asked.tensors_mb, public)


def _build_level(
    writer: ArtifactWriter, oracle: Oracle, level: LevelSpec, request: BuildRequest, stages: Stages
) -> Built:
    stages.begin("tensors", level.name)
    manifest = writer.write(level, request.tokens)
    parity = None
    if request.parity:
        stages.begin("parity", level.name)
        parity = check_parity(oracle, writer.store, manifest)
        require_parity(parity)
    stages.begin("costs", level.name)
    off = parity.in_integers if parity else integers_error(oracle, writer.store, manifest)
    manifest = dataclasses.replace(manifest, integers_error=off)
    path = write_manifest(writer.store.folder, manifest)
    manifest = measure(path, manifest)
    write_manifest(writer.store.folder, manifest)
    return Built(manifest, parity)


def _count_stages(request: BuildRequest) -> int:
    """So many will begin: those of all levels, those of each surgery (load, capture), those of each level."""
    levels = request.levels
    surgeries = {(level.ffn, level.svd, level.svd_rank, level.refit) for level in levels}
    shared = any(level.needs_public for level in levels) + any(level.drop is Drop.IMPORTANCE for level in levels)
    each = 3 if request.parity else 2
    return shared + 2 * len(surgeries) + each * len(levels) + sum(level.tensors_mb is not None for level in levels)


def _require_possible(request: BuildRequest, foundation: Foundation) -> None:
    """Raise ExportError for what can be known to be impossible before anything is loaded."""
    names = [level.name for level in request.levels]
    if not names or len(set(names)) != len(names):
        msg = "give one or more levels, each with a name of its own"
        raise ExportError(msg)
    if not 2 <= request.tokens <= foundation.spec.max_tokens:  # noqa: PLR2004 - one token predicts nothing
        msg = f"cannot measure at {request.tokens} tokens: the model takes 2 to {foundation.spec.max_tokens}"
        raise ExportError(msg)
    for level in request.levels:
        resolve_level(level, foundation.spec.layers, uniform_layers, 1)
        if level.needs_public and request.public is None:
            msg = f"level {level.name} needs public data: give --public, a folder of .txt, a .csv, or a token folder"
            raise ExportError(msg)


def _read_public(request: BuildRequest, foundation: Foundation, stages: Stages) -> Tokens | None:
    if request.public is None or not any(level.needs_public for level in request.levels):
        return None
    stages.begin("public data")
    return read_public(request.public, foundation, request.tokens)


def _resolve(
    request: BuildRequest, foundation: Foundation, public: Tokens | None, stages: Stages
) -> tuple[LevelSpec, ...]:
    rules: dict[Drop, Callable[[int, int], tuple[int, ...]]] = {Drop.UNIFORM: uniform_layers}
    if public is not None and any(level.drop is Drop.IMPORTANCE for level in request.levels):
        stages.begin("influence of layers")
        influence = block_influence(foundation.load(request.seed), public)
        rules[Drop.IMPORTANCE] = lambda _total, keep: most_influential(influence, keep)
    rows = 0 if public is None else len(public.ids)
    return tuple(resolve_level(level, foundation.spec.layers, rules[level.drop], rows) for level in request.levels)


def _require_same(
    request: BuildRequest, model: ModelSpec, adapter: AdapterRequest, initial: Blob | None = None
) -> None:
    """Refuse a folder whose other levels are of another model or start from another adapter.

    All levels of a folder share one adapter: what devices learn at different levels is averaged. `initial` holds its
    starting values, None while they are not known.
    """
    replaced = {f"{level.name}.manifest" for level in request.levels}
    for path in sorted(request.out.glob("*.manifest")):
        if path.name in replaced:
            continue
        manifest = read_manifest(path)
        same = AdapterRequest.of(manifest.adapter) == adapter
        same &= initial is None or manifest.files[manifest.adapter.initial] == initial
        if manifest.model != model or not same:
            other = "model" if manifest.model != model else "adapter"
            msg = f"{request.out} has level {manifest.level.name} of another {other}: give another folder"
            raise ExportError(msg)


def _with_targets(request: AdapterRequest, foundation: Foundation) -> AdapterRequest:
    targets = request.targets or foundation.family.targets
    return AdapterRequest(request.kind, request.rank, request.alpha, targets)


def read_request(path: pathlib.Path) -> BuildRequest:
    """A request as JSON: see `parse_request`. Raises ExportError when the file is not there or not one."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return parse_request(plain)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise ExportError(msg) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is no build request: {type(error).__name__}: {error}"
        raise ExportError(msg) from error


def parse_request(plain: Mapping[str, Any]) -> BuildRequest:
    """A request from plain data.

    {"model": dir, "task": "causal-lm", "out": dir, "adapter": {"kind": "lora", "rank": 8, "alpha": 16, "targets": []},
     "levels": [{"name": "fp32", "bits": 32, "layers": null, "train_last": null}],
     "labels": [], "tokens": 128, "parity": true, "seed": 0,
     "public": {"path": dir or file, "text_column": "text", "rows": 16}}

    A level may have the other fields of LevelRequest. Raises KeyError, ValueError, TypeError for what is not that.
    """
    adapter, public = plain["adapter"], plain.get("public")
    return BuildRequest(
        model=pathlib.Path(plain["model"]),
        task=TaskType(plain["task"]),
        out=pathlib.Path(plain["out"]),
        adapter=AdapterRequest(
            str(adapter["kind"]), int(adapter["rank"]), float(adapter["alpha"]), tuple(adapter.get("targets") or ())
        ),
        levels=tuple(parse_level(level) for level in plain["levels"]),
        labels=tuple(plain.get("labels") or ()),
        tokens=int(plain.get("tokens", 128)),
        parity=bool(plain.get("parity", True)),
        seed=int(plain.get("seed", 0)),
        public=PublicRequest(**{**public, "path": pathlib.Path(public["path"])}) if public else None,
    )


def parse_level(plain: Mapping[str, Any]) -> LevelRequest:
    """A level from plain data, by the fields of LevelRequest. Raises ValueError, TypeError for what is not one."""
    found = {**plain, "drop": Drop(plain.get("drop", Drop.UNIFORM)), "svd": tuple(plain.get("svd", ()))}
    return LevelRequest(**found)
