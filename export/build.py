"""Several emulator levels of one model in one process: captured once a rank, written into one folder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.manifest import LevelSpec, Manifest, ModelSpec, TaskType
from edge_sdk.wire.tensors import Array
from export.adapters import AdapterRequest, adapter_arrays, set_adapter, starting_values_at_rank
from export.artifact import ArtifactWriter, staged, write_manifest
from export.errors import ExportError
from export.folder import read_manifest
from export.foundation import Foundation, open_foundation
from export.kinds import FACTORS, beside
from export.levels import LevelRequest, resolve_level
from export.measure import measure
from export.parity import Oracle, Parity, check_parity, integers_error, require_parity
from export.program import Adapted, adapt, capture_program
from export.progress import Progress, Report


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. Targets that the adapter leaves open are the family's. `tokens` is where costs are measured, of
    text; images are of one length.
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


@dataclass(frozen=True, slots=True)
class Built:
    """A finished level; `parity` is None where it was not checked."""

    manifest: Manifest
    parity: Parity | None


SHARED_STAGES = 2  # by the levels of one rank: load, capture
LEVEL_STAGES = 3  # tensors, parity unless turned off, costs


def build(request: BuildRequest, report: Report) -> tuple[Built, ...]:
    """Build all levels; the folder changes when all of them are done, or not at all.

    Raises:
        ExportError: what was asked for cannot be done.
        ParityError: a level's gradients are not the model's.
    """
    foundation = open_foundation(request.model, request.task, request.labels)
    adapter = request.adapter.resolved(foundation)
    levels = _resolve(request, foundation, adapter)
    model = beside(adapter, foundation.spec)
    _require_same(request, model, adapter)
    groups = _by_rank(request, adapter, levels)
    each = LEVEL_STAGES if request.parity else LEVEL_STAGES - 1
    of = SHARED_STAGES * len(groups) + each * len(levels)
    built: dict[str, Built] = {}
    with staged(request.out) as store:  # first of all: a folder that cannot be written is said at once
        start: dict[str, Array] = {}
        for k, (rank, group) in enumerate(groups.items()):
            stages = _Stages(report, SHARED_STAGES * k + each * len(built), of)
            stages.begin(0, "load, without dropout" if foundation.dropout else "load")
            adapted = adapt(foundation, adapter.at_rank(rank), request.seed)
            start = start or adapter_arrays(adapted.parameters)
            set_adapter(adapted.parameters, starting_values_at_rank(start, rank))
            built |= _build_group(store, adapted, group, request, stages)
        whole = built[groups[adapter.rank][0].name].manifest
        _require_same(request, model, adapter, whole.files[whole.adapter.initial])
    return tuple(built[level.name] for level in levels)


@dataclass(frozen=True, slots=True)
class _Stages:
    """Progress from stage `first` on, of `of` in all."""

    report: Report
    first: int
    of: int

    def begin(self, number: int, stage: str, level: str = "") -> None:
        """Stage `number` from here has begun, or goes on."""
        self.report(Progress(stage, level, self.first + number, self.of))


def _build_group(
    store: BlobStore, adapted: Adapted, levels: Sequence[LevelSpec], request: BuildRequest, stages: _Stages
) -> dict[str, Built]:
    """The levels of one rank, captured once."""
    program = capture_program(adapted, lambda name: stages.begin(1, f"capture {name}"))
    writer, oracle = ArtifactWriter(program, store), Oracle(adapted, request.seed)
    numbers = itertools.count(SHARED_STAGES)

    def begins(level: LevelSpec) -> Callable[[str], None]:
        return lambda stage: stages.begin(next(numbers), stage, level.name)

    return {level.name: _build_level(writer, oracle, level, request, begins(level)) for level in levels}


def _build_level(
    writer: ArtifactWriter, oracle: Oracle, level: LevelSpec, request: BuildRequest, begin: Callable[[str], None]
) -> Built:
    begin("tensors")
    spec = writer.program.adapted.foundation.spec
    manifest = writer.write(level, spec.row_tokens(request.tokens))
    parity = None
    if request.parity:
        begin("parity")
        parity = check_parity(oracle, writer.store, manifest)
        require_parity(parity)
    begin("costs")
    off = parity.in_integers if parity else integers_error(oracle, writer.store, manifest)
    manifest = dataclasses.replace(manifest, integers_error=off)
    path = write_manifest(writer.store.folder, manifest)
    manifest = measure(path, manifest)
    write_manifest(writer.store.folder, manifest)
    return Built(manifest, parity)


def _resolve(request: BuildRequest, foundation: Foundation, adapter: AdapterRequest) -> tuple[LevelSpec, ...]:
    names = [level.name for level in request.levels]
    if not names or len(set(names)) != len(names):
        msg = "give one or more levels, each with a name of its own"
        raise ExportError(msg)
    model = beside(adapter, foundation.spec)
    if not 2 <= model.row_tokens(request.tokens) <= model.max_tokens:  # noqa: PLR2004 - one token predicts nothing
        msg = f"cannot measure at {request.tokens} tokens: the model takes 2 to {model.max_tokens}"
        raise ExportError(msg)
    layers = foundation.spec.layers
    return tuple(resolve_level(level, layers, adapter.layers_of(layers)) for level in request.levels)


def _by_rank(request: BuildRequest, adapter: AdapterRequest, levels: Sequence[LevelSpec]) -> dict[int, list[LevelSpec]]:
    """The levels by the adapter's rank there, its own first: the others start from its values, cut."""
    groups: dict[int, list[LevelSpec]] = {adapter.rank: []}
    for level, asked in zip(levels, request.levels, strict=True):
        rank = adapter.rank if asked.rank is None else asked.rank
        if asked.rank is not None and adapter.kind not in FACTORS:
            msg = f"level {level.name} has a rank, which is for adapters of kind {', '.join(FACTORS)}"
            raise ExportError(msg)
        if rank != adapter.rank and not 1 <= rank <= adapter.rank:
            msg = f"level {level.name} cannot have rank {rank}: give 1 to {adapter.rank}, the adapter's"
            raise ExportError(msg)
        groups.setdefault(rank, []).append(level)
    if not groups[adapter.rank]:
        msg = f"no level has the adapter's own rank, {adapter.rank}, from which the others are cut"
        raise ExportError(msg)
    return groups


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
     "labels": [], "tokens": 128, "parity": true, "seed": 0}

    Raises KeyError, ValueError, TypeError for what is not that.
    """
    adapter = plain["adapter"]
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
        levels=tuple(LevelRequest(**level) for level in plain["levels"]),
        labels=tuple(plain.get("labels") or ()),
        tokens=int(plain.get("tokens", 128)),
        parity=bool(plain.get("parity", True)),
        seed=int(plain.get("seed", 0)),
    )
