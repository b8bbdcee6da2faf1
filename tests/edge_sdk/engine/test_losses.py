"""The vocabulary's loss in slices is cross-entropy, by NumPy in float64 over the whole matrix."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.losses import VocabularyHead, predicting_rows
from edge_sdk.engine.runtime import Graph
from edge_sdk.errors import ArtifactError
from edge_sdk.wire.costs import SLICE_ROWS
from edge_sdk.wire.tensors import Array, TensorFile, write_tensors

WIDTH, VOCABULARY = 32, 2 * SLICE_ROWS + 100  # three slices, the last of them short


@pytest.fixture(scope="module")
def head(llama: Artifact, tmp_path_factory: pytest.TempPathFactory) -> VocabularyHead:
    """The exported products with a vocabulary of several slices: their graphs take any number of rows."""
    path = tmp_path_factory.mktemp("head") / "matrix"
    matrix = np.random.default_rng(0).normal(0, 0.5, (VOCABULARY, WIDTH)).astype(np.float32)
    write_tensors(path, {"matrix": matrix})
    loss = llama.manifest.vocabulary_loss
    assert loss is not None
    project, unproject, lookup = (Graph(llama.path(name), 1) for name in (loss.project, loss.unproject, loss.lookup))
    return VocabularyHead(project, unproject, lookup, TensorFile(path), 3, lambda: None)


def reference(matrix: Array, z: Array, labels: Array) -> tuple[float, Array]:
    """Sum of the cross-entropy and its gradient by z, float64."""
    logits = z.astype(np.float64) @ matrix.astype(np.float64).T
    top = logits.max(axis=1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    at = np.arange(len(z)), labels
    gradient = np.exp(logs)
    gradient[at] -= 1
    return -float(logs[at].sum()), gradient @ matrix


@pytest.mark.parametrize("weight", [1.0, 0.125])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_loss_and_gradient_are_the_references(head: VocabularyHead, scale: float, weight: float) -> None:
    """For timid and for certain predictions, with labels at the borders of slices, the float64 answer comes out."""
    labels = np.array([0, SLICE_ROWS - 1, SLICE_ROWS, 2 * SLICE_ROWS - 1, 2 * SLICE_ROWS, VOCABULARY - 1, 17])
    z = np.random.default_rng(1).normal(0, scale, (len(labels), WIDTH)).astype(np.float32)
    expected, slope = reference(head.tensors["matrix"], z, labels)
    loss, dz = head.gradient(z, labels, weight)
    assert loss == pytest.approx(weight * expected, rel=1e-5)
    assert head.loss(z, labels, weight) == pytest.approx(weight * expected, rel=1e-5)
    assert np.abs(dz - weight * slope).max() < 1e-4 * weight * np.abs(slope).max()


def test_huge_logits_do_not_overflow(head: VocabularyHead) -> None:
    """The largest logit is taken out before the exponential: a loss of thousands is still a number."""
    z = np.full((2, WIDTH), 1e4, np.float32)
    labels = np.array([3, 5000])
    loss, dz = head.gradient(z, labels, 1.0)
    assert loss == pytest.approx(reference(head.tensors["matrix"], z, labels)[0], rel=1e-5)
    assert np.isfinite(dz).all()


def test_no_prediction_is_no_loss(head: VocabularyHead) -> None:
    """A batch in which nothing is predicted costs nothing and pulls nowhere."""
    loss, dz = head.gradient(np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64), 1.0)
    assert (loss, dz.shape) == (0.0, (0, WIDTH))


def test_the_watch_is_asked_at_every_slice(head: VocabularyHead) -> None:
    """The largest growth of a step happens here, so the budget is looked at after each product."""
    asked = []
    watched = dataclasses.replace(head, watch=lambda: asked.append(1))
    watched.gradient(np.ones((7, WIDTH), np.float32), np.arange(7), 1.0)
    assert len(asked) == 3 * 3 * 2  # chunks of rows, slices, directions


def test_a_token_is_predicted_from_the_one_before() -> None:
    """Token t predicts token t + 1 of its row while both count; what is padded neither predicts nor is predicted."""
    ids = np.array([[5, 6, 7, 8], [1, 2, 9, 9], [3, 9, 9, 9]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    predicts, labels = predicting_rows(ids, mask)
    assert predicts.tolist() == [[True, True, True, False], [True, False, False, False], [False] * 4]
    assert labels.tolist() == [6, 7, 8, 2]


def test_a_graph_that_is_none_is_refused(tmp_path: pathlib.Path) -> None:
    """An artifact's fault, said in one line: bytes that are no graph, and one that onnxruntime cannot load."""
    (tmp_path / "graph").write_bytes(b"no graph\n" * 10)
    with pytest.raises(ArtifactError, match=r"^graph graph is not loaded: [^\n]+$"):
        Graph(tmp_path / "graph", 1)
    (tmp_path / "graph").write_bytes(b"\x3a\x00")  # a model of one graph, which has nothing in it
    with pytest.raises(ArtifactError, match=r"^onnxruntime [\d.]+ cannot load graph [^\n]+$"):
        Graph(tmp_path / "graph", 1)
