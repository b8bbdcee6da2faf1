"""A captured program and a level -> blobs and a manifest.

An artifact folder holds `blobs/<sha256>` and a `<level>.manifest` per level; levels share blobs of equal content.
Equal input gives equal bytes. A folder changes all at once: files are staged beside it and moved in at the end.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import onnx_ir as ir

from edge_sdk.wire.blobs import Blob, BlobStore, sync_folder, written_atomically
from edge_sdk.wire.blocks import BLOCKS, block_list
from edge_sdk.wire.errors import WireError
from edge_sdk.wire.graphs import check_graph
from edge_sdk.wire.manifest import (
    FORMAT,
    AdapterSpec,
    ClassesLoss,
    Keeping,
    LevelSpec,
    Manifest,
    OptimizerGraphs,
    Segment,
    Structure,
    VocabularyLoss,
    encode_manifest,
    walked_back,
)
from edge_sdk.wire.tensors import Array, write_tensors
from export.adapters import adapter_arrays
from export.compress.integers import INTEGER_BITS, MultiplyBackInIntegers
from export.compress.quantize import FULL_BITS, STORAGES, QuantizeInputs, is_quantized, quantize_tensors
from export.emulator import NOT_FITTED, Fitted
from export.errors import ExportError
from export.kinds import beside
from export.lowering import Canonicalize, serialize
from export.optimizers import optimizer_graphs
from export.program import VOCABULARY, Place, Program, frozen_arrays, uses_vocabulary, vocabulary_matrix
from export.structures import Captured


@dataclass(slots=True)
class ArtifactWriter:
    """Writes the blobs of one program's levels into `store`, each content once."""

    program: Program
    store: BlobStore
    _written: dict[tuple[int, str], Blob] = field(default_factory=dict)

    def write(self, level: LevelSpec, reference_tokens: int, fitted: Fitted = NOT_FITTED) -> Manifest:
        """Write all blobs of `level`, which may have `fitted` tensors; its manifest as yet without costs."""
        files: dict[str, Blob] = {}
        kept = tuple(self._kept(level))
        walk = tuple(self._segment(place, level, fitted, files) for place in kept)
        returns = {segment.structure for segment in walked_back(walk)}
        alike = {segment.structure: place for segment, place in zip(walk, kept, strict=True)}
        structures = {
            name: self._structure(name, place, level, files, returns=name in returns) for name, place in alike.items()
        }
        manifest = Manifest(
            format=FORMAT,
            model=beside(self.program.adapted.request, self.program.adapted.foundation.spec),
            level=level,
            adapter=self._adapter(files),
            context=self._context(files),
            structures=structures,
            walk=walk,
            vocabulary_loss=self._vocabulary_loss(level.bits, fitted, files) if uses_vocabulary(self.program) else None,
            classes_loss=self._classes_loss(level.bits, files),
            optimizers=self._optimizers(files),
            tokenizer=self._tokenizer(files),
            reference_tokens=reference_tokens,
            costs=(),
            needs_bytes=0,
            files=files,
        )
        if blocks := block_list(self.store, files.values()):
            files[BLOCKS] = self.store.put(blocks)
        return dataclasses.replace(manifest, files=dict(sorted(files.items())))

    def _kept(self, level: LevelSpec) -> Iterator[Place]:
        return (place for place in self.program.walk if place.layer is None or place.layer in level.layers)

    def _segment(self, place: Place, level: LevelSpec, fitted: Fitted, files: dict[str, Blob]) -> Segment:
        name, bits = f"{place.segment}.safetensors", level.bits_of(place.layer)
        if place.segment in fitted:
            files[name] = self._put_tensors({n: fitted[place.segment][n] for n in place.frozen()}, bits)
        else:
            self._tensors(name, place.frozen(), bits, files)
        chosen = place.layer is None or place.layer in level.trained_layers
        trains = chosen and bool(self.program.structures[place.structure].trained)
        return Segment(place.segment, _structure_name(place, level), name, trains)

    def _structure(
        self, name: str, place: Place, level: LevelSpec, files: dict[str, Blob], *, returns: bool
    ) -> Structure:
        """The graphs of places like this one; the way back only where a segment of them `returns`."""
        captured, bits = self.program.structures[place.structure], level.bits_of(place.layer)
        matrices = _matrices(captured)
        backward = integers = ""
        kept = captured.kept if returns else {}
        if captured.backward is not None and returns:
            backward = self._graph(f"{name}.backward.onnx", captured.backward, matrices, bits, files)
            integers = self._integers(f"{name}.backward.integers.onnx", captured.backward, matrices, bits, files)
        return Structure(
            forward=self._graph(f"{name}.forward.onnx", captured.forward, matrices, bits, files),
            backward=backward,
            keepings=tuple(self._keeping(name, captured, kept_bits, bits, files) for kept_bits in kept),
            context=captured.context,
            frozen=_frozen_names(captured, bits),
            trained=captured.trained,
            backward_integers=integers,
        )

    def _keeping(self, name: str, captured: Captured, kept_bits: int, bits: int, files: dict[str, Blob]) -> Keeping:
        kept, matrices = captured.kept[kept_bits], _matrices(captured)
        forward, backward = (f"{name}.{way}.keep{kept_bits}.onnx" for way in ("forward", "backward"))
        integers = f"{name}.backward.keep{kept_bits}.integers.onnx"
        return Keeping(
            bits=kept_bits,
            forward=self._graph(forward, kept.forward, matrices, bits, files),
            backward=self._graph(backward, kept.backward, matrices, bits, files),
            kept=kept.names,
            floats=kept.floats,
            row_floats=kept.row_floats,
            backward_integers=self._integers(integers, kept.backward, matrices, bits, files),
        )

    def _vocabulary_loss(self, bits: int, fitted: Fitted, files: dict[str, Blob]) -> VocabularyLoss:
        matrix, tied = vocabulary_matrix(self.program.adapted)
        tensors = "embed.safetensors"  # where the walk has put it, if it is the embedding's
        if VOCABULARY in fitted:
            tensors = f"{VOCABULARY}.safetensors"
            files[tensors] = self._put_tensors(fitted[VOCABULARY], bits)
        elif not tied:
            tensors = self._tensors(f"{VOCABULARY}.safetensors", {"matrix": matrix.detach().numpy()}, bits, files)
        graphs = {
            name: self._graph(f"vocabulary.{name}.onnx", graph, ("matrix",), bits, files)
            for name, graph in self.program.vocabulary.items()
        }
        return VocabularyLoss(**graphs, tensors=tensors)

    def _classes_loss(self, bits: int, files: dict[str, Blob]) -> ClassesLoss | None:
        step, head = self.program.step, self.program.head
        if step is None or head is None:
            return None
        return ClassesLoss(
            step=self._graph("head.step.onnx", step.forward, _matrices(step), bits, files),
            tensors=self._tensors("head.safetensors", frozen_arrays(head), bits, files),
            frozen=_frozen_names(step, bits),
            trained=step.trained,
        )

    def _context(self, files: dict[str, Blob]) -> str:
        graph = self.program.context
        return "" if graph is None else self._graph("context.onnx", graph, (), FULL_BITS, files)

    def _optimizers(self, files: dict[str, Blob]) -> OptimizerGraphs:
        names = {}
        for name, graph in optimizer_graphs().items():
            names[name] = self._graph(f"optimizer.{name}.onnx", graph, (), FULL_BITS, files)
        return OptimizerGraphs(**names)

    def _adapter(self, files: dict[str, Blob]) -> AdapterSpec:
        """The adapter of the full model, whatever the level: all levels of one rank start from the same file."""
        request = self.program.adapted.request
        values = adapter_arrays(self.program.adapted.parameters)
        initial = self._tensors("adapter.safetensors", values, FULL_BITS, files)
        return AdapterSpec(request.kind, initial=initial, **request.options)

    def _tokenizer(self, files: dict[str, Blob]) -> str:
        path = self.program.adapted.foundation.tokenizer
        if path is None:
            return ""
        files["tokenizer.json"] = self.store.put(path.read_bytes())
        return "tokenizer.json"

    def _tensors(self, name: str, tensors: Mapping[str, Array], bits: int, files: dict[str, Blob]) -> str:
        if (bits, name) not in self._written:
            self._written[bits, name] = self._put_tensors(tensors, bits)
        files[name] = self._written[bits, name]
        return name

    def _put_tensors(self, tensors: Mapping[str, Array], bits: int) -> Blob:
        path = self.store.folder / "writing"
        write_tensors(path, tensors if bits == FULL_BITS else quantize_tensors(tensors, bits))
        return self.store.adopt(path)

    def _graph(self, name: str, graph: ir.Model, matrices: tuple[str, ...], bits: int, files: dict[str, Blob]) -> str:
        if (bits, name) not in self._written:
            self._written[bits, name] = self.store.put(_checked(name, serialize(_in_bits(graph, matrices, bits))))
        files[name] = self._written[bits, name]
        return name

    def _integers(
        self, name: str, backward: ir.Model, matrices: tuple[str, ...], bits: int, files: dict[str, Blob]
    ) -> str:
        """The name of `backward` with products in integers; empty where it has none to make so."""
        if bits != INTEGER_BITS:
            return ""
        graph = _in_bits(backward, matrices, bits)
        if not MultiplyBackInIntegers()(graph).modified:
            return ""
        Canonicalize()(graph)
        return self._graph(name, graph, (), bits, files)


def _checked(name: str, data: bytes) -> bytes:
    """The graph, if devices load it."""
    try:
        check_graph(data)
    except WireError as error:
        msg = f"{name}: no device would load this: {error}; the model computes what devices do not, see `graphs`"
        raise ExportError(msg) from error
    return data


def _structure_name(place: Place, level: LevelSpec) -> str:
    """The captured structure's, with the bits of this place where they are not the level's."""
    bits = level.bits_of(place.layer)
    return place.structure if bits == level.bits else f"{place.structure}.{bits}bits"


def _matrices(captured: Captured) -> tuple[str, ...]:
    return tuple(name for name, shape in captured.frozen.items() if is_quantized(shape))


def _frozen_names(captured: Captured, bits: int) -> tuple[str, ...]:
    """Input names of the frozen tensors, each matrix by the parts that hold it."""
    matrices = () if bits == FULL_BITS else _matrices(captured)
    return tuple(n for name in captured.frozen for n in (STORAGES[bits].names(name) if name in matrices else (name,)))


def _in_bits(graph: ir.Model, matrices: tuple[str, ...], bits: int) -> ir.Model:
    """The graph that reads each of `matrices` from its parts; `graph` itself stays as it is."""
    if bits == FULL_BITS or not matrices:
        return graph
    copy = ir.from_proto(ir.to_proto(graph))
    ir.passes.Sequential(QuantizeInputs(matrices, bits), Canonicalize())(copy)
    return copy


@contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `out` that becomes `out` if the block succeeds; else nothing is left behind.

    Where `out` is an artifact already, what is new moves into it. Raises ExportError where it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        msg = f"cannot write to {out.parent}: {why}"
        raise ExportError(msg) from error
    try:
        yield staging
        _move_in(staging, out)
    except OSError as error:
        msg = f"cannot write {out}: {error.strerror or error}"
        raise ExportError(msg) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # nothing is there any more if it became `out`


@contextmanager
def staged(out: pathlib.Path) -> Iterator[BlobStore]:
    """A store that becomes the artifact `out`, or a part of it, if the block succeeds."""
    with new_folder(out) as folder:
        yield BlobStore(folder)


def _move_in(staging: pathlib.Path, out: pathlib.Path) -> None:
    """Blobs first, manifests last: a manifest that is there finds its blobs there."""
    if not out.exists():
        staging.chmod(0o755)
        staging.rename(out)
        sync_folder(out.parent)
        return
    target = BlobStore(out)
    made = sorted((staging / "blobs").iterdir())
    new = [path for path in made if not target.is_whole(Blob(path.name, path.stat().st_size))]
    try:
        for path in new:
            target.remove(path.name)  # one of that name that is damaged
            target.adopt(path)
    except BaseException:
        for path in new:
            target.remove(path.name)
        raise
    for path in sorted(staging.glob("*.manifest")):
        path.replace(out / path.name)


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> pathlib.Path:
    """Write `<level>.manifest`. Raises ExportError when it exceeds what devices accept."""
    path = folder / f"{manifest.level.name}.manifest"
    try:
        data = encode_manifest(manifest)
    except ValueError as error:
        raise ExportError(str(error)) from error
    with written_atomically(path) as file:
        file.write(data)
    return path
