"""Several emulator levels of one model in one process: captured once a surgery and a rank, written into one folder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from edge_sdk.wire.blobs import Blob, BlobStore
from edge_sdk.wire.manifest import LevelSpec, Manifest, ModelSpec, Surgery, TaskType
from edge_sdk.wire.tensors import Array
from export.adapters import AdapterRequest, adapter_arrays, set_adapter, starting_values_at_rank
from export.artifact import ArtifactWriter, staged, write_manifest
from export.compress.calibrate import Rounding
from export.compress.importance import block_influence
from export.compress.mixed import Errors, part_errors, with_mixed_bits
from export.compress.quantize import FULL_BITS
from export.compress.surgery import WHOLE, operated_model
from export.emulator import NOT_FITTED, Fitted, emulator
from export.errors import ExportError
from export.evaluate import Rows
from export.fitting import Calibrated, calibrate, fit
from export.folder import read_manifest
from export.foundation import Foundation, open_foundation
from export.kinds import FACTORS, beside
from export.levels import Drop, LevelRequest, Refitting, resolve_level
from export.measure import measure
from export.parity import Oracle, Parity, check_parity, integers_error, require_parity
from export.program import Adapted, Program, adapt, capture_program
from export.progress import Progress, Report
from export.public import WHAT_IT_IS, PublicRequest, read_public
from export.start import begin_from


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. Targets that the adapter leaves open are the family's. `tokens` is where costs are measured, of
    text; images are of one length. `public` is the data that some levels are chosen or refitted by, None where none is.
    `start` is a PEFT checkpoint of kind sparse, from whose changes the factors begin.
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
    start: pathlib.Path | None = None


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
    def captured(self) -> _Captured:
        """What levels must have in common to share one captured program."""
        surgery = self.spec.surgery
        return _Captured(self.rank, surgery, refitted=surgery != WHOLE and self.spec.refit is not None)


class _Captured(NamedTuple):
    """A captured program: the adapter's rank, what blocks have lost, and whether what was left of them was refitted."""

    rank: int
    surgery: Surgery
    refitted: bool


@dataclass(frozen=True, slots=True)
class _Group:
    """Levels that share a captured program, and what they are made of; `operated` is None where nothing was cut."""

    levels: Sequence[_Asked]
    operated: nn.Module | None
    adapted: Adapted
    public: Rows | None


def build(request: BuildRequest, report: Report) -> tuple[Built, ...]:
    """Build all levels; the folder changes when all of them are done, or not at all.

    Raises:
        ExportError: what was asked for cannot be done.
        ParityError: a level's gradients are not the model's.
    """
    foundation = open_foundation(request.model, request.task, request.labels)
    adapter = request.adapter.resolved(foundation)
    model = beside(adapter, foundation.spec)
    stages = _Stages(report, _count_stages(request, _possible_levels(request, model, adapter)))
    _require_same(request, model, adapter)
    built: dict[str, Built] = {}
    with staged(request.out) as store:  # first of all: a folder that cannot be written is said at once
        public = _read_public(request, foundation, stages)
        influence = _influence(request, foundation, public, stages)
        levels = _resolve(request, model, adapter, influence, 0 if public is None else len(public))
        start: dict[str, Array] = {}
        for captured, asked in _groups(levels, adapter.rank).items():
            stages.begin("load, without dropout" if foundation.dropout else "load")
            operated = None
            if captured.surgery != WHOLE:
                data = public if captured.refitted else None
                operated = operated_model(foundation, captured.surgery, adapter.targets, request.seed, data)
            adapted = adapt(foundation, adapter.at_rank(captured.rank), request.seed, operated)
            if request.start is not None and not start:
                begin_from(adapted, request.start)
            start = start or adapter_arrays(adapted.parameters)
            set_adapter(adapted.parameters, starting_values_at_rank(start, captured.rank))
            built |= _build_group(store, _Group(asked, operated, adapted, public), request, stages)
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

    def begin_parts(self, stage: str, level: str = "") -> Callable[[str], None]:
        """The next stage begins, part by part; what is returned is told the name of each."""
        number = next(self._numbers)
        return lambda name: self._report(Progress(f"{stage} {name}", level, number, self._of))


def _build_group(store: BlobStore, group: _Group, request: BuildRequest, stages: _Stages) -> dict[str, Built]:
    program = capture_program(group.adapted, stages.begin_parts("capture"))
    writer, oracle = ArtifactWriter(program, store), Oracle(group.adapted, request.seed)
    search = _Search(program, group, request.seed, stages)
    built = {}
    for asked in group.levels:
        level, fitted = search.find(asked)
        built[level.name] = _build_level(writer, oracle, level, fitted, request, stages)
    return built


@dataclass(slots=True)
class _Search:
    """Finds what public data says of the levels of a group: tensors that are not the model's, and bits of parts.

    What takes long is found once for levels that keep the same layers as the model has them.
    """

    program: Program
    group: _Group
    seed: int
    stages: _Stages
    _calibrated: dict[tuple[int, ...], Calibrated] = field(default_factory=dict)
    _errors: dict[tuple[tuple[int, ...], int, bool], Errors] = field(default_factory=dict)

    def find(self, asked: _Asked) -> tuple[LevelSpec, Fitted]:
        """The level, now with bits for each of its parts, and its own tensors."""
        level, fitted, by = asked.spec, NOT_FITTED, None
        if level.refit is not None:
            report = self.stages.begin_parts("refit:", level.name)
            group = self.group
            fitted = fit(group.adapted, group.operated, level, _given(group.public), self.seed, report)
            if asked.request.may_have_least_bits:
                report("rounding")
                by = self._calibration(level, fitted)
        if asked.request.tensors_mb is not None:
            self.stages.begin("sensitivity", level.name)
            errors = self._sensitivity(level, fitted, by)
            level = with_mixed_bits(self.program, level, errors, asked.request.tensors_mb)
        return level, fitted if by is None else {**fitted, **by.fitted(level)}

    def _calibration(self, level: LevelSpec, fitted: Fitted) -> Calibrated:
        known = {} if fitted else self._calibrated
        if level.layers not in known:
            known[level.layers] = calibrate(self.group.adapted, level, fitted, _given(self.group.public))
        return known[level.layers]

    def _sensitivity(self, level: LevelSpec, fitted: Fitted, by: Calibrated | None) -> Errors:
        known, state = {} if fitted else self._errors, (level.layers, level.bits, by is None)
        if state not in known:
            rounding = self._nearest(level, fitted) if by is None else by.rounding
            model = emulator(self.group.adapted, level, fitted)[0].get_base_model()
            known[state] = part_errors(self.program, level, model, rounding, _given(self.group.public))
        return known[state]

    def _nearest(self, level: LevelSpec, fitted: Fitted) -> Rounding:
        in_full = dataclasses.replace(level, bits=FULL_BITS)
        return Rounding(emulator(self.group.adapted, in_full, fitted)[0].get_base_model())


def _given(public: Rows | None) -> Rows:
    if public is None:  # it was refused
        raise AssertionError
    return public


def _build_level(
    writer: ArtifactWriter, oracle: Oracle, level: LevelSpec, fitted: Fitted, request: BuildRequest, stages: _Stages
) -> Built:
    stages.begin("tensors", level.name)
    spec = writer.program.adapted.foundation.spec
    manifest = writer.write(level, spec.row_tokens(request.tokens), fitted)
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


def _possible_levels(request: BuildRequest, model: ModelSpec, adapter: AdapterRequest) -> list[_Asked]:
    """The levels, but for which layers are dropped by importance.

    Raises ExportError for what can be known to be impossible before anything is loaded.
    """
    names = [level.name for level in request.levels]
    if not names or len(set(names)) != len(names):
        msg = "give one or more levels, each with a name of its own"
        raise ExportError(msg)
    if not 2 <= model.row_tokens(request.tokens) <= model.max_tokens:  # noqa: PLR2004 - one token predicts nothing
        msg = f"cannot measure at {request.tokens} tokens: the model takes 2 to {model.max_tokens}"
        raise ExportError(msg)
    falling = range(model.layers, 0, -1)  # the last layers go: a refit has a bridge in their place, as nearly all have
    levels = _resolve(request, model, adapter, falling, 1)
    for level in request.levels:
        if level.needs_public and request.public is None:
            msg = f"level {level.name} needs public data: give --public, {WHAT_IT_IS}"
            raise ExportError(msg)
        if level.rank is not None and adapter.kind not in FACTORS:
            msg = f"level {level.name} has a rank, which is for adapters of kind {', '.join(FACTORS)}"
            raise ExportError(msg)
        if level.rank is not None and not 1 <= level.rank <= adapter.rank:
            msg = f"level {level.name} cannot have rank {level.rank}: give 1 to {adapter.rank}, the adapter's"
            raise ExportError(msg)
    if all(level.rank != adapter.rank for level in levels):
        msg = f"no level has the adapter's own rank, {adapter.rank}, from which the others are cut"
        raise ExportError(msg)
    return levels


def _count_stages(request: BuildRequest, levels: Sequence[_Asked]) -> int:
    """So many will begin: those of all levels, those of each captured program (load, capture), those of each level."""
    shared = any(one.needs_public for one in request.levels) + any(_by_importance(one) for one in request.levels)
    each = 3 if request.parity else 2
    own = sum((one.spec.refit is not None) + (one.request.tensors_mb is not None) for one in levels)
    return shared + 2 * len({one.captured for one in levels}) + each * len(levels) + own


def _by_importance(level: LevelRequest) -> bool:
    return level.drop is Drop.IMPORTANCE


def _read_public(request: BuildRequest, foundation: Foundation, stages: _Stages) -> Rows | None:
    if request.public is None or not any(level.needs_public for level in request.levels):
        return None
    stages.begin("public data")
    return read_public(request.public, foundation, request.tokens)


def _influence(request: BuildRequest, foundation: Foundation, public: Rows | None, stages: _Stages) -> Sequence[float]:
    """Of each layer, where a level is chosen by it."""
    if not any(_by_importance(level) for level in request.levels):
        return ()
    stages.begin("influence of layers")
    return block_influence(foundation.load(request.seed), _given(public))


def _resolve(
    request: BuildRequest, model: ModelSpec, adapter: AdapterRequest, influence: Sequence[float], rows: int
) -> list[_Asked]:
    adapted = adapter.layers_of(model.layers)
    specs = (
        resolve_level(level, model.layers, adapted, influence=influence, public_rows=rows) for level in request.levels
    )
    return [
        _Asked(level, spec, adapter.rank if level.rank is None else level.rank)
        for level, spec in zip(request.levels, specs, strict=True)
    ]


def _groups(levels: Sequence[_Asked], highest: int) -> dict[_Captured, list[_Asked]]:
    """Those that share a captured program together; the adapter's own rank first: others start from its values, cut."""
    groups: dict[_Captured, list[_Asked]] = {}
    for level in sorted(levels, key=lambda level: level.rank != highest):
        groups.setdefault(level.captured, []).append(level)
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
     "labels": [], "tokens": 128, "parity": true, "seed": 0,
     "public": {"path": dir or file, "text_column": "text", "rows": 16}, "start": null}

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
        start=pathlib.Path(plain["start"]) if plain.get("start") else None,
    )


def parse_level(plain: Mapping[str, Any]) -> LevelRequest:
    """A level from plain data, by the fields of LevelRequest. Raises ValueError, TypeError for what is not one."""
    found = {
        "drop": Drop(plain.get("drop", Drop.UNIFORM)),
        "svd": tuple(plain.get("svd", ())),
        "refit": Refitting(plain.get("refit", Refitting.NONE)),
    }
    return LevelRequest(**{**plain, **found})
