"""Kept blocks fitted to the whole model: in closed form, by training, and as a level's own tensors."""

from __future__ import annotations

import copy

import pytest
import torch

from edge_sdk.wire.manifest import LevelSpec, Refit
from export.adapters import AdapterRequest
from export.artifact import ArtifactWriter, staged
from export.compress.distill import distil, loss_of_states
from export.compress.states import Imitation, fit_states
from export.emulator import emulator
from export.errors import ExportError, UnsupportedError
from export.evaluate import Rows
from export.fitting import fit, read_fitted
from export.foundation import Foundation, open_foundation
from export.parity import Oracle, check_parity, require_parity
from export.parts import backbone_of, blocks_of, keep_layers
from export.public import run
from tests.export.conftest import FAMILIES, LABELS, LM, Exports, public_for, public_rows

POST_NORM = ("bert", "roberta", "distilbert")  # whose blocks end in a norm


def imitation(foundation: Foundation, *dropped: int) -> Imitation:
    """The model, and the same with fewer layers."""
    teacher, layers = foundation.load(), tuple(k for k in range(foundation.spec.layers) if k not in dropped)
    student = copy.deepcopy(teacher)
    keep_layers(student, layers)
    return Imitation(foundation, student, teacher, layers)


def off(pair: Imitation, public: Rows) -> float:
    """How far the student's last state is from the teacher's, by their sizes."""
    (found, wanted) = (torch.cat([state[mask] for mask, state in run(m, public)]) for m in (pair.student, pair.teacher))
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).mean())


def opened(exports: Exports, name: str) -> Foundation:
    """The model folder of a family."""
    task = FAMILIES[name][1]
    return open_foundation(exports.model(name), task, () if task is LM else LABELS)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in POST_NORM])
def test_least_squares_come_nearer(exports: Exports, name: str) -> None:
    """A block that does the work of the one dropped behind it comes nearer to what both did; it alone is changed."""
    pair = imitation(opened(exports, name), 1)
    public = public_for(pair.foundation, 40)
    before, was = off(pair, public), copy.deepcopy(pair.student)
    fit_states(pair, (0,), public)
    assert off(pair, public) < 0.97 * before
    changed = [n for n, p in pair.student.named_parameters() if not p.equal(was.get_parameter(n))]
    assert len(changed) == 1
    assert ".0." in changed[0]


def test_where_nothing_is_missing_nothing_changes(exports: Exports) -> None:
    """To the bit."""
    pair = imitation(opened(exports, "llama"))
    fit_states(pair, pair.layers, public_rows(9))
    assert all(p.equal(pair.teacher.get_parameter(name)) for name, p in pair.student.named_parameters())


@pytest.mark.parametrize("name", POST_NORM)
def test_a_block_that_ends_in_a_norm_is_refused(exports: Exports, name: str) -> None:
    """Its FFN's last product is no linear part of what it gives."""
    pair = imitation(opened(exports, name), 1)
    with pytest.raises(UnsupportedError, match="cannot be refitted by least squares"):
        fit_states(pair, (0,), public_rows(9))


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_training_comes_nearer(exports: Exports, name: str) -> None:
    """Of a language model, a classifier, images; equal seeds give equal weights, and what is not given stays."""
    pairs = [imitation(opened(exports, name), 1) for _ in range(3)]
    public = public_for(pairs[0].foundation, 20)
    before, said = off(pairs[0], public), list[str]()
    was = copy.deepcopy(pairs[0].student)
    for pair, seed in zip(pairs, (0, 0, 1), strict=True):
        weights = list(blocks_of(backbone_of(pair.student))[0].parameters())
        distil(pair, weights, public, Refit(20, 30, 3e-3), seed, said.append, loss_of_states)
    assert off(pairs[0], public) < 0.97 * before
    first, same, other = (dict(pair.student.named_parameters()) for pair in pairs)
    assert all(first[n].equal(same[n]) for n in first)
    changed = {n for n in first if not first[n].equal(was.get_parameter(n))}
    assert {n for n in first if not first[n].equal(other[n])} == changed
    assert all(".0." in n for n in changed)
    assert len(said) == 30
    assert said[1].startswith("distillation, step 3 of 30, loss ")


def test_a_loss_that_is_none_is_said(exports: Exports) -> None:
    """One line, instead of weights that are not numbers."""
    pair = imitation(opened(exports, "llama"), 1)
    with pytest.raises(ExportError, match="give a learning rate below 1e\\+30"):
        distil(
            pair, list(pair.student.parameters()), public_rows(9), Refit(9, 9, 1e30), 0, lambda _: None, loss_of_states
        )


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_a_level_has_its_own_blocks(exports: Exports, bits: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Those that do not train are fitted, all else is shared with the plain level; the files are what parity proves."""
    exported = exports["llama"]
    adapted, plain = exported.program.adapted, {8: "int8", 4: "int4", 32: "fp32"}[bits]
    level = LevelSpec("fitted", (0, 1, 3), (3,), bits, refit=Refit(9, 2, 1e-3))
    fitted = fit(adapted, None, level, public_rows(9), 0, lambda _: None)
    assert fitted.keys() == {"block.0", "block.1"}
    with staged(tmp_path_factory.mktemp("fitted") / "artifact") as store:
        manifest = ArtifactWriter(exported.program, store).write(level, 16, fitted)
        other = exported.manifests[plain]
        differ = {name for name, blob in manifest.files.items() if blob != other.files.get(name)}
        assert differ == {"block.0.safetensors", "block.1.safetensors"}
        require_parity(check_parity(Oracle(adapted), store, manifest))
        models = (emulator(adapted, level, one)[0] for one in (fitted, read_fitted(adapted, store, manifest)))
        for one, two in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_what_an_adapter_trains_is_not_fitted(exports: Exports) -> None:
    """Biases that train are the full model's; where whole blocks train and no other is kept, nothing is left to fit."""
    level = LevelSpec("fitted", (0, 2), (0, 2), 32, refit=Refit(9, 1, 1e-3))
    biased = exports.of("opt", AdapterRequest("bias")).program.adapted
    for segment, own in fit(biased, None, level, public_rows(9), 0, print).items():
        assert own
        assert not {f"{segment}/{name}" for name in own} & biased.parameters.keys()
    whole = exports.of("gpt2", AdapterRequest("full")).program.adapted
    with pytest.raises(ExportError, match="all its blocks train whole"):
        fit(whole, None, level, public_rows(9), 0, print)
