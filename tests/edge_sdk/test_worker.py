"""A worker does its order or says why not; what it hands over is what it learned, within its budget."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_sdk.data import open_token_folder, split
from edge_sdk.engine.artifact import Artifact, artifact_in, open_artifact
from edge_sdk.engine.plan import Declined, Plan, choose_plan
from edge_sdk.engine.train import Recipe, evaluate, train_steps
from edge_sdk.engine.walk import Walk
from edge_sdk.environment import training_environment
from edge_sdk.feedback import owner, read_residual
from edge_sdk.order import Feedback, WorkerOrder
from edge_sdk.wire import codec
from edge_sdk.wire.blobs import BlobStore, blob_of
from edge_sdk.wire.delta import Delta, decode_delta
from edge_sdk.wire.messages import DeltaCodec, Report
from edge_sdk.wire.tensors import Array, TensorFile
from edge_sdk.worker import _rows
from tests.edge_sdk.orders import PLENTY_BYTES, make_order, put_adapter
from tests.edge_sdk.samples import MB

ROOT = pathlib.Path(__file__).parents[2]


def work(order: WorkerOrder, folder: pathlib.Path, **environment: str) -> list[dict[str, Any]]:
    """What a worker says about the order, line by line."""
    path = folder / "order"
    path.write_bytes(codec.encode(order))
    command = [sys.executable, "-m", "edge_sdk.worker", str(path)]
    surroundings = {**training_environment(order.threads), **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=surroundings, check=False)
    path.unlink()
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said, done.stderr
    assert (done.returncode == 0) == (said[-1]["event"] == "finished")
    return said


def report_of(said: list[dict[str, Any]]) -> Report:
    """The report in the last line."""
    assert said[-1]["event"] == "finished", said[-1]
    return codec.from_plain(Report, said[-1]["report"], "report")


def delta_of(order: WorkerOrder) -> Delta:
    """The delta that was left, after a look at what it says of itself."""
    data = pathlib.Path(order.delta).read_bytes()
    file, delta = decode_delta(data, len(data))
    task = order.task
    assert (file.task_id, file.round, file.device, file.adapter) == (
        task.task_id,
        task.round,
        order.device,
        task.adapter.sha256,
    )
    assert file.examples == task.steps * task.batch
    return delta


def start_of(order: WorkerOrder) -> tuple[Artifact, dict[str, Array]]:
    """The order's artifact, and the adapter to start from."""
    store = BlobStore(pathlib.Path(order.store))
    artifact = artifact_in(store, order.task.artifact)
    with TensorFile(store.path(order.task.adapter.sha256)) as file:
        return artifact, {name: np.array(file[name]) for name in artifact.manifest.adapter_shapes()}


def test_a_task_ends_with_what_was_learned(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Progress for each step, a report, a delta: applied to the adapter it gives the loss that was reported."""
    order = make_order(tmp_path, tiny_artifact)
    said = work(order, tmp_path)
    report, delta = report_of(said), delta_of(order)
    assert [(line["event"], line["step"], line["steps"]) for line in said[:-1]] == [
        ("progress", step, 4) for step in range(1, 5)
    ]
    assert (report.steps, report.examples) == (4, 16)
    assert report.loss_after < report.loss_before
    assert 0 < report.step_ms / 1000 < report.wall_s
    assert report.peak_bytes <= report.predicted_bytes <= report.budget_bytes == PLENTY_BYTES
    assert report.threads == 1
    artifact, adapter = start_of(order)
    assert delta.tensors.keys() == artifact.manifest.trained_shapes().keys()
    folder = open_token_folder(pathlib.Path(order.data), 0, artifact.manifest.model.vocabulary)
    _, aside = split(folder.usable(), max_rows=order.held_aside_rows)
    walk, rows = Walk(artifact, 1, Plan(2, 32), lambda: None), [folder.batch(aside, order.task.tokens)]
    assert evaluate(walk, adapter, rows).loss == pytest.approx(report.loss_before, rel=1e-5)
    after = {**adapter, **{name: adapter[name] + change for name, change in delta.tensors.items()}}
    assert evaluate(walk, after, rows).loss == pytest.approx(report.loss_after, rel=1e-5)


def test_a_delta_is_the_difference_that_training_makes(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Training again here, by the same recipe on the same rows, ends at the adapter plus the worker's delta."""
    order = make_order(tmp_path, tiny_artifact, steps=3, freeze=("lora_A",))
    report_of(work(order, tmp_path))
    artifact, adapter = start_of(order)
    before = {name: array.copy() for name, array in adapter.items()}
    training, _ = _rows(order, artifact)
    walk = Walk(artifact, 1, Plan(4, 32), lambda: None)
    list(train_steps(walk, adapter, training, Recipe.of(order.task)))
    delta = delta_of(order)
    assert delta.tensors.keys() == {name for name in adapter if name.endswith("lora_B")}
    for name, change in delta.tensors.items():
        assert np.allclose(before[name] + change, adapter[name], rtol=1e-5, atol=1e-7)
        assert change.any()


def test_a_task_is_repeatable(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The same task gives the same bytes again; another seed, other rows and another delta."""
    order = make_order(tmp_path, tiny_artifact)
    deltas = []
    for seed in (0, 0, 1):
        again = dataclasses.replace(order, task=dataclasses.replace(order.task, seed=seed))
        report_of(work(again, tmp_path))
        deltas.append(pathlib.Path(order.delta).read_bytes())
    assert deltas[0] == deltas[1] != deltas[2]


@pytest.mark.parametrize("how", [DeltaCodec.FP32, DeltaCodec.INT8, DeltaCodec.TOP_K])
def test_what_two_tasks_learned_comes_through_or_is_left(
    tiny_artifact: pathlib.Path, tmp_path: pathlib.Path, how: DeltaCodec
) -> None:
    """The deltas of two tasks, however coarse, and the second's residual add up to what the tasks learned."""
    before, after = tmp_path / "before", tmp_path / "after"
    true, came = Delta({}), Delta({})
    order = make_order(tmp_path, tiny_artifact, freeze=("lora_A",), residual="run")
    for seed in (1, 2):
        exact = dataclasses.replace(order, task=dataclasses.replace(order.task, seed=seed))
        report_of(work(exact, tmp_path))
        true += delta_of(exact)
        coarse = dataclasses.replace(
            exact,
            task=dataclasses.replace(exact.task, delta_codec=how),
            feedback=Feedback(str(before), str(after)),
        )
        report_of(work(coarse, tmp_path))
        came += delta_of(coarse)
        after.replace(before)
    artifact, _ = start_of(order)
    owed = Delta(read_residual(before, owner(order.task, artifact.manifest)))
    assert owed.tensors.keys() == true.tensors.keys()
    missing = true + -1 * (came + owed)
    assert missing.norm() <= 1e-5 * true.norm()
    assert (owed.norm() == 0) == (how is DeltaCodec.FP32)


def test_without_feedback_a_codec_rounds_by_chance(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The task's seed draws: the same task gives the same bytes, and they are not those of rounding to nearest."""
    order = make_order(tmp_path, tiny_artifact, delta_codec=DeltaCodec.INT4)
    deltas = []
    for feedback in (None, None, Feedback(str(tmp_path / "before"), str(tmp_path / "after"))):
        report_of(work(dataclasses.replace(order, feedback=feedback), tmp_path))
        deltas.append(pathlib.Path(order.delta).read_bytes())
    assert deltas[0] == deltas[1] != deltas[2]


def test_a_worker_that_may_use_integers_learns(tiny_classifier: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Whether or not this machine is faster with them, the task is done within its budget, and the loss falls."""
    order = make_order(tmp_path, tiny_classifier, steps=8, integer_gradients=True)
    report = report_of(work(order, tmp_path))
    assert report.loss_after < report.loss_before
    assert report.peak_bytes <= report.predicted_bytes <= report.budget_bytes
    assert report.gradient_error in {0.0, start_of(order)[0].manifest.integers_error}


@pytest.mark.parametrize(("more_bytes", "shape"), list(itertools.product((0, 3 * MB, 30 * MB), ((4, 16), (16, 128)))))
def test_a_chosen_plan_keeps_its_budget(
    tiny_artifact: pathlib.Path, tmp_path: pathlib.Path, more_bytes: int, shape: tuple[int, int]
) -> None:
    """With what the leanest plan needs, or more, the plan for that budget stays within it, as measured."""
    manifest = open_artifact(tiny_artifact).manifest
    declined = choose_plan(manifest, *shape, 0)
    assert isinstance(declined, Declined)
    budget_bytes = declined.needed_bytes + more_bytes
    order = make_order(tmp_path, tiny_artifact, budget_bytes, batch=shape[0], tokens=shape[1], steps=2)
    report = report_of(work(order, tmp_path))
    assert report.predicted_bytes <= budget_bytes
    assert 30 * MB < report.peak_bytes <= budget_bytes


def test_a_budget_below_the_need_is_over_budget(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A worker that cannot even begin within its budget says so, with what would do, and leaves no delta."""
    order = make_order(tmp_path, tiny_artifact, 40 * MB)
    (said,) = work(order, tmp_path)
    assert (said["event"], said["reason"]) == ("failed", "over-budget")
    assert said["peak_bytes"] > 30 * MB
    assert re.fullmatch(r"\d+ MB needed by the leanest plan, the budget is 40 MB", said["detail"])
    assert not pathlib.Path(order.delta).exists()


def test_a_plan_too_large_is_refused_what_it_wants(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Where the budget has no room for what a plan wants, allocations fail before memory is taken: only code may still
    be mapped, 10 MB.
    """
    order = make_order(tmp_path, tiny_artifact, 75 * MB, batch=36, tokens=256)
    (said,) = work(dataclasses.replace(order, correction=0.1, held_aside_rows=1), tmp_path)
    assert (said["event"], said["reason"]) == ("failed", "over-budget")
    assert "an allocation beyond the budget of 75 MB was refused" in said["detail"]
    assert said["peak_bytes"] <= 85 * MB


def damaged(path: pathlib.Path) -> None:
    """Flip a bit of the file's last byte."""
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


def file_of(order: WorkerOrder, name: str) -> pathlib.Path:
    """Where the artifact's file of that name lies."""
    artifact, _ = start_of(order)
    return artifact.path(name)


def replaced(order: WorkerOrder, **changes: Any) -> WorkerOrder:
    """The order with another task."""
    return dataclasses.replace(order, task=dataclasses.replace(order.task, **changes))


def with_adapter(order: WorkerOrder, value: float) -> WorkerOrder:
    """The order with an adapter that holds this value in one tensor."""
    artifact, adapter = start_of(order)
    name = next(name for name in adapter if name.endswith("lora_B"))
    return replaced(order, adapter=put_adapter(artifact, {name: np.full_like(adapter[name], value)}))


def with_tokens(order: WorkerOrder, token: int) -> WorkerOrder:
    """The order with a token id in the private data."""
    path = pathlib.Path(order.data, "ids.npy")
    ids = np.load(path)
    ids[0, 0] = token
    np.save(path, ids)
    return order


def without(path: pathlib.Path | str) -> None:
    """Remove a file or folder."""
    shutil.rmtree(path) if pathlib.Path(path).is_dir() else pathlib.Path(path).unlink()


FAILURES: dict[str, tuple[Callable[[WorkerOrder], WorkerOrder | None], str, str]] = {
    "no manifest": (lambda order: replaced(order, artifact=blob_of(b"?")), "bad-artifact", "is not in the store"),
    "no adapter": (lambda order: replaced(order, adapter=blob_of(b"?")), "bad-artifact", "is not in the store"),
    "no graph": (lambda order: without(file_of(order, "block.forward.onnx")), "bad-artifact", "lacks block.forward"),
    "a damaged graph": (lambda order: damaged(file_of(order, "block.forward.onnx")), "bad-artifact", "match its name"),
    "damaged weights": (lambda order: damaged(file_of(order, "norm.safetensors")), "bad-artifact", "match its name"),
    "a damaged adapter": (
        lambda order: damaged(file_of(order, "adapter.safetensors")),
        "bad-artifact",
        "match its name",
    ),
    "an adapter of something else": (
        lambda order: replaced(order, adapter=BlobStore(pathlib.Path(order.store)).put(b"\2" + bytes(7) + b"{}")),
        "bad-artifact",
        "the adapter has nothing",
    ),
    "no data": (lambda order: without(order.data), "bad-data", "ids.npy is missing"),
    "a token that the model lacks": (lambda order: with_tokens(order, 10**6), "bad-data", "token 1000000 is out of"),
    "no number": (lambda order: with_adapter(order, np.nan), "bad-artifact", "finite"),
}


@pytest.mark.parametrize(("change", "reason", "detail"), FAILURES.values(), ids=FAILURES)
def test_what_cannot_be_done_has_a_reason(
    tiny_artifact: pathlib.Path,
    tmp_path: pathlib.Path,
    change: Callable[[WorkerOrder], WorkerOrder | None],
    reason: str,
    detail: str,
) -> None:
    """Each expected failure is one line with its reason and what is wrong; no delta is left."""
    order = make_order(tmp_path, tiny_artifact)
    (said,) = work(change(order) or order, tmp_path)
    assert (said["event"], said["reason"]) == ("failed", reason)
    assert detail in said["detail"]
    assert "\n" not in said["detail"]
    assert said["peak_bytes"] > 10 * MB
    assert not pathlib.Path(order.delta).exists()


def test_a_worker_leaves_nothing_but_its_delta(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """No telemetry in the user's folders, no caches, no temporary files, and an unchanged store."""
    order = make_order(tmp_path, tiny_artifact)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "home").mkdir()
    home = str(tmp_path / "home")
    report_of(work(order, tmp_path, HOME=home, XDG_CACHE_HOME=home, XDG_DATA_HOME=home, TMPDIR=home))
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after.pop(pathlib.Path(order.delta))
    assert after == before
    assert not list(pathlib.Path(home).iterdir())


def test_a_classifier_learns_at_its_level(tiny_classifier: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """In int8 with one layer and the head training, a task ends the same way; the delta holds just these."""
    order = make_order(tmp_path, tiny_classifier)
    report = report_of(work(order, tmp_path))
    assert report.loss_after < report.loss_before
    names = delta_of(order).tensors
    assert names.keys() == start_of(order)[0].manifest.trained_shapes().keys()
    assert {name.split("/")[0] for name in names} == {"block.2", "head"}


def test_a_model_of_images_learns(tiny_vision: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Blocks and head learn how bright each class is, within the plan's peak; the delta holds all that trains."""
    order = make_order(tmp_path, tiny_vision, steps=8)
    report = report_of(work(order, tmp_path))
    assert report.loss_after < report.loss_before
    assert report.peak_bytes <= report.predicted_bytes <= report.budget_bytes
    names = delta_of(order).tensors
    assert names.keys() == start_of(order)[0].manifest.trained_shapes().keys()
    assert {name.split("/")[0] for name in names} == {"block.0", "block.1", "block.2", "head"}


def test_images_that_are_none_are_bad_data(tiny_vision: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Of other colours than the model's, or no images at all: the reason is one line."""
    order = make_order(tmp_path, tiny_vision)
    np.save(pathlib.Path(order.data, "images.npy"), np.zeros((40, 2, 12, 20), np.uint8))
    (said,) = work(order, tmp_path)
    assert (said["event"], said["reason"]) == ("failed", "bad-data")
    assert "images of 2 channels; this model takes 3" in said["detail"]
    without(pathlib.Path(order.data, "images.npy"))
    (said,) = work(order, tmp_path)
    assert "images.npy is missing; an image folder has images.npy and labels.npy" in said["detail"]
