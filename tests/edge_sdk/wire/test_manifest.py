"""A manifest is read as it was written, and one that contradicts itself is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from typing import Any

import pytest
from hypothesis import given, settings

from edge_sdk.wire.blobs import BlobStore, blob_of
from edge_sdk.wire.errors import DecodeError, TooLargeError, WireError
from edge_sdk.wire.manifest import (
    MAX_MANIFEST_BYTES,
    ClassesLoss,
    Cost,
    ImageSpec,
    LevelSpec,
    Manifest,
    Segment,
    Structure,
    TaskType,
    decode_manifest,
    encode_manifest,
)
from tests.edge_sdk.samples import FILE, KEEPING, RANK, WIDTH, make_manifest
from tests.edge_sdk.wire.strategies import damaged

MANIFEST = make_manifest()
CLASSES = ClassesLoss("forward", "tensors", (), {"bias": (3,)})
PAIR = {"q.lora_A": (RANK, WIDTH), "q.lora_B": (WIDTH, RANK)}


def changed(**changes: Any) -> Manifest:
    """The sample with some fields replaced."""
    return dataclasses.replace(MANIFEST, **changes)


def test_a_manifest_survives() -> None:
    """What the exporter writes is what the device reads, bytes and all."""
    for manifest in (MANIFEST, make_manifest(integers_ms=0.5)):
        data = encode_manifest(manifest)
        assert decode_manifest(data) == manifest
        assert encode_manifest(decode_manifest(data)) == data


def test_a_real_manifest_survives(tiny_artifact: pathlib.Path) -> None:
    """The export's manifest names its files, all of which are there and true, and says what each part costs."""
    (path,) = tiny_artifact.glob("fp32.manifest")
    manifest = decode_manifest(path.read_bytes())
    assert encode_manifest(manifest) == path.read_bytes()
    for blob in manifest.files.values():
        BlobStore(tiny_artifact).verify(blob)
    measured = {cost.graph for cost in manifest.costs}
    block = manifest.structures["block"]
    assert {"process", "pages", block.forward, block.backward, *(k.backward for k in block.keepings)} <= measured


def test_adapter_tensors_are_named_by_segment() -> None:
    """Names carry the segment, so two levels of one model agree on them; only what trains is trained."""
    everything = {f"block.{k}/{name}": shape for k in range(2) for name, shape in PAIR.items()}
    assert MANIFEST.adapter_shapes() == everything
    assert MANIFEST.trained_shapes() == everything
    embed, low, high = MANIFEST.walk
    half = changed(walk=(embed, dataclasses.replace(low, trains=False), high))
    assert half.adapter_shapes() == everything
    assert half.trained_shapes() == {name: shape for name, shape in everything.items() if name.startswith("block.1/")}
    classes = changed(vocabulary_loss=None, classes_loss=CLASSES)
    assert classes.trained_shapes() == {**everything, "head/bias": (3,)}


@pytest.mark.parametrize(
    "shape", [(0, 9, 9), (17, 9, 9), (3, 0, 9), (3, 9, -1), (3, 4097, 1), (3, 1, 4097), (2, 4096, 4096)]
)
def test_images_that_no_device_should_hold_are_refused(shape: tuple[int, int, int]) -> None:
    """A number in a manifest from elsewhere must not fill a device's memory."""
    with pytest.raises(ValueError, match=r"images of .* bytes are not supported"):
        ImageSpec(*shape)
    assert ImageSpec(1, 4096, 4096).size_bytes == 1 << 24


def test_images_and_their_task_go_together() -> None:
    """Images are of one length, which a task must name; of text a task may take less than the model reads."""
    image = ImageSpec(3, 9, 9)
    for task, has in ((TaskType.IMAGE_CLASSIFICATION, None), (TaskType.SEQUENCE_CLASSIFICATION, image)):
        with pytest.raises(ValueError, match=f"a model for {task.value} with"):
            dataclasses.replace(MANIFEST.model, task=task, image=has)
    text = MANIFEST.model
    images = dataclasses.replace(text, task=TaskType.IMAGE_CLASSIFICATION, image=image, labels=("a", "b"))
    assert (text.row_tokens(7), images.row_tokens(7)) == (7, images.max_tokens)
    assert [text.reads(n) for n in (1, 64, 65)] == [True, True, False]
    assert [images.reads(n) for n in (63, 64, 65)] == [False, True, False]
    with pytest.raises(ValueError, match="images have no vocabulary"):
        changed(model=images)
    manifest = changed(model=images, vocabulary_loss=None, classes_loss=CLASSES)
    assert decode_manifest(encode_manifest(manifest)) == manifest


WALK = MANIFEST.walk
STRUCTURES = MANIFEST.structures


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 2}, "format 2 is not supported"),
        ({"vocabulary_loss": None}, "exactly one loss"),
        ({"classes_loss": CLASSES}, "exactly one loss"),
        ({"files": {**MANIFEST.files, "../passwd": FILE}}, "is no file name"),
        ({"files": {**MANIFEST.files, "/etc/passwd": FILE}}, "is no file name"),
        ({"files": {"forward": FILE}}, "does not list: backward, initial, keep.backward, keep.forward, tensors"),
        ({"context": "absent"}, "does not list: absent"),
        ({"tokenizer": "absent"}, "does not list: absent"),
        ({"walk": (*WALK, Segment("norm", "norm", "tensors", trains=False))}, "unknown structure 'norm'"),
        ({"walk": (*WALK, WALK[-1])}, "unique"),
        ({"walk": (*WALK, Segment("block.2/q", "block", "tensors", trains=True))}, "without a slash"),
        ({"walk": (dataclasses.replace(WALK[0], trains=True), *WALK[1:])}, "embed lacks a graph"),
        ({"walk": (*WALK, Segment("block.2", "block", "", trains=False))}, "block.2 lacks a graph or a tensor file"),
        ({"structures": {**STRUCTURES, "embed": Structure("", "", (), (), (), {})}}, "embed lacks a graph"),
        ({"integers_error": -0.1}, "gradients in integers that are off by -0.1"),
        ({"integers_error": math.nan}, "gradients in integers that are off by nan"),
    ],
    ids=range(16),
)
def test_contradictions_are_refused(changes: dict[str, Any], complaint: str) -> None:
    """Who holds a manifest need not ask whether it is sound."""
    with pytest.raises(ValueError, match=complaint):
        changed(**changes)


def test_levels_are_no_paths_train_what_they_keep_and_have_known_bits() -> None:
    """A level's name is part of a file's name on the exporting machine; bits are those that a matrix can be held in."""
    with pytest.raises(ValueError, match="is no level name"):
        LevelSpec("../fp32", (0,), (0,), 32)
    with pytest.raises(ValueError, match="trains layers it does not keep"):
        LevelSpec("fp32", (0,), (1,), 32)
    with pytest.raises(ValueError, match="5 bits are not supported; supported are 32, 16, 8, 4"):
        LevelSpec("int5", (0,), (0,), 5)
    with pytest.raises(ValueError, match="5 bits are not supported"):
        LevelSpec("mixed", (0,), (0,), 8, (5,))
    with pytest.raises(ValueError, match="level mixed has bits for 1 layers and keeps 2"):
        LevelSpec("mixed", (0, 1), (0,), 8, (4,))
    mixed = LevelSpec("mixed", (0, 3), (0,), 8, (4, 16))
    assert [mixed.bits_of(layer) for layer in (None, 0, 3)] == [8, 4, 16]
    assert LevelSpec("int8", (0, 3), (0,), 8).bits_of(3) == 8


@pytest.mark.parametrize(
    ("batch", "tokens", "memory_bytes", "time_ms"),
    [(0, 8, 1, 1.0), (1, 0, 1, 1.0), (1, 8, -1, 1.0), (1, 8, 1, -1.0), (1, 8, 1, math.nan)],
)
def test_a_cost_that_cannot_have_been_measured_is_refused(
    batch: int, tokens: int, memory_bytes: int, time_ms: float
) -> None:
    """Plans divide by a cost's shape: a peer cannot make a device divide by zero."""
    with pytest.raises(ValueError, match="a cost of 'block'"):
        Cost("block", batch, tokens, memory_bytes, time_ms)


@pytest.mark.parametrize(("bits", "floats", "row_floats"), [(8, 6, 0), (0, 6, 0), (32, 0, 0), (16, -1, 0), (32, 6, -1)])
def test_a_keeping_that_cannot_be_is_refused(bits: int, floats: int, row_floats: int) -> None:
    """Plans count what is kept: less than nothing would make room that is not there."""
    said = f"a keeping of {floats} and {row_floats} numbers in {bits} bits that cannot be"
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(KEEPING, bits=bits, floats=floats, row_floats=row_floats)


def renamed(part: Any, field: str) -> Any:
    """`part` with a file that is not there."""
    return dataclasses.replace(part, **{field: "absent"})


BLOCK = STRUCTURES["block"]


@pytest.mark.parametrize(
    "changes",
    [
        *({"optimizers": renamed(MANIFEST.optimizers, name)} for name in ("adamw", "sgd", "square_sum", "clip")),
        *({"vocabulary_loss": renamed(MANIFEST.vocabulary_loss, n)} for n in ("project", "unproject", "lookup")),
        *(
            {"structures": {**STRUCTURES, "block": dataclasses.replace(BLOCK, keepings=(renamed(KEEPING, name),))}}
            for name in ("forward", "backward", "backward_integers")
        ),
        {"structures": {**STRUCTURES, "block": renamed(BLOCK, "backward_integers")}},
    ],
    ids=range(11),
)
def test_every_graph_is_listed(changes: dict[str, Any]) -> None:
    """Whatever graph a device may ask for has a size and a SHA-256: optimizers, the loss's three, those that keep or
    multiply in integers.
    """
    with pytest.raises(ValueError, match="does not list: absent"):
        changed(**changes)


def test_a_manifest_without_a_walk_is_refused() -> None:
    """There is nothing to train in it."""
    with pytest.raises(DecodeError, match="the walk is empty"):
        decode_manifest(encode_manifest(changed(walk=())))


def test_a_manifest_that_devices_refuse_is_not_written() -> None:
    """The bound is told to the exporter, in bytes, and holds on the device before anything is read."""
    files = {**MANIFEST.files, **{f"file-{k}": blob_of(b"%d" % k) for k in range(1000)}}
    with pytest.raises(ValueError, match=f"devices accept {MAX_MANIFEST_BYTES}"):
        encode_manifest(changed(files=files))
    with pytest.raises(TooLargeError):
        decode_manifest(bytes(MAX_MANIFEST_BYTES + 1))


@settings(max_examples=200)
@given(damaged(encode_manifest(MANIFEST)))
def test_a_damaged_manifest_raises_only_a_wire_error(data: bytes) -> None:
    """A retained message or an SD card may give us anything: a WireError, or a manifest that is sound."""
    with contextlib.suppress(WireError):
        found = decode_manifest(data)
        assert decode_manifest(encode_manifest(found)) == found
