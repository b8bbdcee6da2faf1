"""Several emulator levels of one model in one process: captured once a surgery and a rank, written into one folder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.manifest import LevelSpec, Manifest, ModelSpec, Surgery, TaskType
from edge_sdk.wire.tensors import Array
from export.adapters import AdapterRequest, adapter_arrays, set_adapter, starting_values_at_rank
from export.artifact import ArtifactWriter, staged, write_manifest
from export.compress.importance import block_influence
from export.compress.mixed import with_mixed_bits
from export.errors import ExportError
from export.evaluate import Rows
from export.folder import read_manifest
from export.foundation import Foundation, open_foundation
from export.kinds import FACTORS, beside
from export.levels import Drop, LevelRequest, resolve_level
from export.measure import measure
from export.parity import Oracle, Parity, check_parity, emulator, integers_error, require_parity
from export.program import Adapted, Program, adapt, capture_program
from export.progress import Progress, Report
from export.public import WHAT_IT_IS, PublicRequest, read_public


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. Targets that the adapter leaves open are the family's. `tokens` is where costs are measured, of
    text; images are of one length. `public` is the data that some levels are chosen or refitted by, None where none is.
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """A level: what was asked for, what that is of this model, and the adapter's rank there."""

    request: LevelRequest
    spec: LevelSpec
    rank: int

    @property
    def captured(self) -> tuple[int, Surgery]:
        """What levels must have in common to share one captured program."""
        return self.rank, self.spec.surgery


def build(request: BuildRequest, report: Report) -> tuple[Built, ...]:
    """Build all levels; the folder changes when all of them are done, or not at all.

    Raises:
        ExportError: what was asked for cannot be done.
        ParityError: a level's gradients are not the model's.
    """
    foundation = open_foundation(request.model, request.task, request.labels)
    adapter = request.adapter.resolved(foundation)
    model = beside(adapter, foundation.spec)
    _require_possible(request, model, adapter)
    _require_same(request, model, adapter)
    stages = _Stages(report, _count_stages(request, adapter))
    built: dict[str, Built] = {}
    with staged(request.out) as store:  # first of all: a folder that cannot be written is said at once
        public = _read_public(request, foundation, stages)
        start: dict[str, Array] = {}
        for group in _groups(_resolve(request, foundation, adapter, public, stages), adapter.rank):
            rank, surgery = group[0].captured
            stages.begin("load, without dropout" if foundation.dropout else "load")
            adapted = adapt(foundation, adapter.at_rank(rank), request.seed, surgery, public)
            start = start or adapter_arrays(adapted.parameters)
            set_adapter(adapted.parameters, starting_values_at_rank(start, rank))
            built |= _build_group(store, adapted, group, request, public, stages)
        whole = next(one.manifest for one in built.values() if one.manifest.adapter.rank == adapter.rank)
        _require_same(request, model, adapter, whole.files[whole.adapter.initial])
    return tuple(built[level.name] for level in request.levels)


class _Stages:
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


def _build_group(
    store: BlobStore,
    adapted: Adapted,
    group: Sequence[_Asked],
    request: BuildRequest,
    public: Rows | None,
    stages: _Stages,
) -> dict[str, Built]:
    """The levels of one surgery and rank, captured once."""
    program = capture_program(adapted, stages.begin_parts("capture"))
    writer, oracle = ArtifactWriter(program, store), Oracle(adapted, request.seed)
    return {
        asked.spec.name: _build_level(writer, oracle, _with_bits(program, asked, public, stages), request, stages)
        for asked in group
    }


def _with_bits(program: Program, asked: _Asked, public: Rows | None, stages: _Stages) -> LevelSpec:
    """The level with bits for each of its parts, where its tensors have a bound."""
    level, tensors_mb = asked.spec, asked.request.tensors_mb
    if tensors_mb is None:
        return level
    if public is None:  # it was refused
        raise AssertionError
    stages.begin("sensitivity", level.name)
    model, _ = emulator(program.adapted, level)
    return with_mixed_bits(program, level, model.get_base_model(), tensors_mb, public)


def _build_level(
    writer: ArtifactWriter, oracle: Oracle, level: LevelSpec, request: BuildRequest, stages: _Stages
) -> Built:
    stages.begin("tensors", level.name)
    spec = writer.program.adapted.foundation.spec
    manifest = writer.write(level, spec.row_tokens(request.tokens))
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


def _require_possible(request: BuildRequest, model: ModelSpec, adapter: AdapterRequest) -> None:
    """Raise ExportError for what can be known to be impossible before anything is loaded."""
    names = [level.name for level in request.levels]
    if not names or len(set(names)) != len(names):
        msg = "give one or more levels, each with a name of its own"
        raise ExportError(msg)
    if not 2 <= model.row_tokens(request.tokens) <= model.max_tokens:  # noqa: PLR2004 - one token predicts nothing
        msg = f"cannot measure at {request.tokens} tokens: the model takes 2 to {model.max_tokens}"
        raise ExportError(msg)
    layers = model.layers
    for level in request.levels:
        # Whatever layers matter most: which of them train does not depend on that.
        resolve_level(level, layers, adapter.layers_of(layers), influence=range(layers), public_rows=1)
        if level.needs_public and request.public is None:
            msg = f"level {level.name} needs public data: give --public, {WHAT_IT_IS}"
            raise ExportError(msg)
        _require_rank(level, adapter)
    if all(_rank(level, adapter) != adapter.rank for level in request.levels):
        msg = f"no level has the adapter's own rank, {adapter.rank}, from which the others are cut"
        raise ExportError(msg)


def _require_rank(level: LevelRequest, adapter: AdapterRequest) -> None:
    if level.rank is not None and adapter.kind not in FACTORS:
        msg = f"level {level.name} has a rank, which is for adapters of kind {', '.join(FACTORS)}"
        raise ExportError(msg)
    if level.rank is not None and not 1 <= level.rank <= adapter.rank:
        msg = f"level {level.name} cannot have rank {level.rank}: give 1 to {adapter.rank}, the adapter's"
        raise ExportError(msg)


def _rank(level: LevelRequest, adapter: AdapterRequest) -> int:
    return adapter.rank if level.rank is None else level.rank


def _count_stages(request: BuildRequest, adapter: AdapterRequest) -> int:
    """So many will begin: those of all levels, those of each captured program (load, capture), those of each level."""
    levels = request.levels
    shared = any(level.needs_public for level in levels) + any(level.drop is Drop.IMPORTANCE for level in levels)
    captured = {(_rank(level, adapter), level.ffn, level.svd, level.svd_rank, level.refit) for level in levels}
    each = 3 if request.parity else 2
    return shared + 2 * len(captured) + each * len(levels) + sum(level.tensors_mb is not None for level in levels)


def _read_public(request: BuildRequest, foundation: Foundation, stages: _Stages) -> Rows | None:
    if request.public is None or not any(level.needs_public for level in request.levels):
        return None
    stages.begin("public data")
    return read_public(request.public, foundation, request.tokens)


def _resolve(
    request: BuildRequest, foundation: Foundation, adapter: AdapterRequest, public: Rows | None, stages: _Stages
) -> list[_Asked]:
    layers, influence = foundation.spec.layers, tuple[float, ...]()
    if public is not None and any(level.drop is Drop.IMPORTANCE for level in request.levels):
        stages.begin("influence of layers")
        influence = block_influence(foundation.load(request.seed), public)
    adapted, rows = adapter.layers_of(layers), 0 if public is None else len(public)
    specs = (resolve_level(level, layers, adapted, influence=influence, public_rows=rows) for level in request.levels)
    return [_Asked(level, spec, _rank(level, adapter)) for level, spec in zip(request.levels, specs, strict=True)]


def _groups(levels: Sequence[_Asked], highest: int) -> list[list[_Asked]]:
    """Those that share a captured program together; the adapter's own rank first: others start from its values, cut."""
    groups: dict[tuple[int, Surgery], list[_Asked]] = {}
    for level in levels:
        groups.setdefault(level.captured, []).append(level)
    return sorted(groups.values(), key=lambda group: group[0].rank != highest)


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
     "levels": [{"name": "fp32", "bits": 32, "layers": null, "train_last": null, "rank": null}],
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
            kind=str(adapter["kind"]),
            rank=int(adapter.get("rank", 0)),
            alpha=float(adapter.get("alpha", 0)),
            targets=tuple(adapter.get("targets") or ()),
            last=int(adapter.get("last", 0)),
            first=int(adapter.get("first", 0)),
            length=int(adapter.get("length", 0)),
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
