"""The proof of an artifact: its graphs, run by onnxruntime, give the gradients that torch's autograd gives.

The model is put into the level's state (layers dropped, matrices rounded as it holds them), both sides get the same
adapter (factors are drawn, so that no gradient vanishes behind one that is zero; all else is moved from its start at
random, for weights that are drawn make no model) and the same batch (drawn, with padding).
The error of a tensor is max |ours - torch's| / max |torch's|.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from edge_sdk.wire.blobs import BlobStore
from edge_sdk.wire.manifest import IGNORED, LevelSpec, Manifest, Surgery, TaskType
from edge_sdk.wire.tensors import Array
from export.adapters import AdapterRequest, adapter_arrays, set_adapter
from export.compress.quantize import FULL_BITS
from export.compress.surgery import WHOLE, operated_model
from export.emulator import NOT_FITTED, Fitted, emulator
from export.errors import ParityError
from export.fitting import read_fitted
from export.folder import read_artifact, verify_files
from export.foundation import Foundation, open_same_foundation
from export.kinds import FACTORS
from export.patches import scaled
from export.program import Adapted, adapt
from export.progress import Progress, Report, silent
from export.reference import Batch, Outcome, ReferenceWalk

HALF_BITS, HALF_BOUND = 16, 2e-2  # rounding to 11 bits, through all layers of a small model: a few thousandths
INTEGERS_BOUND = 0.5  # a wrong formula's is about 1; how much less is good enough, whoever trains decides
BOUND = 1e-4  # over everything seen in float32 by a factor of 3, under any wrong formula by orders of magnitude
# Some levels, such as half of the blocks refitted, amplify any rounding: torch's own float32 is off by more than that
# there. No float32 can do better; so many times torch's own error is allowed, and never what might be a wrong formula.
TIMES_TORCH, MOST = 3.0, 1e-2
ROWS, TOKENS = 3, 24
UNLABELLED = 0.3  # of the tokens that could have a label


@dataclass(frozen=True, slots=True)
class Parity:
    """Relative errors of one level: of the loss, and the largest per trained input over all segments.

    `kept_in_half` is the largest of any gradient where activations are kept in 16 bits. `in_integers` is what the
    manifest calls `integers_error`. `torch_off` is the largest error of torch's own float32, where it was asked for.
    """

    level: str
    loss: float
    gradients: Mapping[str, float]
    kept_in_half: float = 0.0
    in_integers: float = 0.0
    torch_off: float = 0.0

    @property
    def allowed(self) -> float:
        """The largest error that is no fault of the graphs."""
        return max(BOUND, min(TIMES_TORCH * self.torch_off, MOST)) if self.torch_off > 0 else BOUND  # also for NaN

    @property
    def errors(self) -> dict[str, float]:
        """All of them, by what they are of."""
        return {"loss": self.loss, **{f"gradient of {name}": error for name, error in self.gradients.items()}}

    @property
    def worst(self) -> float:
        """The largest of them, NaN if any is."""
        return max(self.errors.values(), key=badness)

    @property
    def holds(self) -> bool:
        """Whether all are within the bound. Not so for NaN."""
        return self.worst <= self.allowed and self.kept_in_half <= HALF_BOUND and self.in_integers <= INTEGERS_BOUND


def badness(error: float) -> tuple[bool, float]:
    """Errors in the order of how bad they are: nothing is worse than NaN, which compares with nothing."""
    return math.isnan(error), error


class Oracle:
    """What torch says of one model: of one adapter and one batch, both drawn from `seed`.

    Levels that differ in their surgery are of different models. `outcome` is computed once for all levels that keep the
    same layers in the same bits, unless they were fitted.
    """

    def __init__(self, adapted: Adapted, seed: int = 0) -> None:
        """Draw the adapter and the batch. The model is left as it is."""
        generator = np.random.default_rng(seed)
        drawn = adapted.request.kind in FACTORS
        self.adapted = adapted
        self.adapter = {
            name: generator.normal(0, 0.05, tuple(start.shape)).astype(np.float32) + (0 if drawn else start)
            for name, start in adapter_arrays(adapted.parameters).items()
        }
        self.batch = draw_batch(adapted.foundation, seed)
        self._outcomes: dict[tuple[tuple[int, ...], int, tuple[int, ...]], Outcome] = {}

    def outcome(self, level: LevelSpec, fitted: Fitted = NOT_FITTED) -> Outcome:
        """Loss, and the gradient by every adapter tensor of the layers kept, whether or not the level trains it."""
        if fitted:
            return self._outcome(level, fitted)
        state = (level.layers, level.bits, level.layer_bits)
        if state not in self._outcomes:
            self._outcomes[state] = self._outcome(level, fitted)
        return self._outcomes[state]

    def exact_outcome(self, level: LevelSpec, fitted: Fitted = NOT_FITTED) -> Outcome:
        """The same in float64, for twice the memory."""
        return self._outcome(level, fitted, torch.float64)

    def _outcome(self, level: LevelSpec, fitted: Fitted, dtype: torch.dtype = torch.float32) -> Outcome:
        model, parameters = emulator(self.adapted, level, fitted)
        model.to(dtype)
        set_adapter(parameters, self.adapter)
        loss = torch_loss(model, self.adapted.foundation.spec.task, self.batch)
        loss.backward()
        gradients = {name: p.grad.numpy() for name, p in parameters.items() if p.grad is not None}
        return Outcome(loss.item(), gradients)


def check_parity(oracle: Oracle, store: BlobStore, manifest: Manifest) -> Parity:
    """Compare one level with its model; where it was fitted, with a model that has the tensors of its files.

    Where they disagree, the model in float64 decides: on some batches its float32 alone is off by more than the bound,
    and how far that is says how far any float32 may be.
    """
    fitted = read_fitted(oracle.adapted, store, manifest)
    torchs = oracle.outcome(manifest.level, fitted)
    parity = _compared(oracle, store, manifest, torchs)
    if parity.holds:
        return parity
    exact = oracle.exact_outcome(manifest.level, fitted)
    off = [relative_error(torchs.gradients[name], exact.gradients[name]) for name in manifest.trained_shapes()]
    return replace(_compared(oracle, store, manifest, exact), torch_off=float(np.max(off, initial=0.0)))


def _compared(oracle: Oracle, store: BlobStore, manifest: Manifest, wanted: Outcome) -> Parity:
    walk = ReferenceWalk(store, manifest)
    gradients: dict[str, float] = {}
    for kept_bits in (0, FULL_BITS):
        found = walk.run(oracle.adapter, oracle.batch, kept_bits)
        for name in manifest.trained_shapes():
            group = name.partition("/")[2]
            error = relative_error(found.gradients[name], wanted.gradients[name])
            gradients[group] = float(np.maximum(gradients.get(group, 0.0), error))  # it keeps a NaN, max may not
    half = walk.run(oracle.adapter, oracle.batch, HALF_BITS).gradients
    errors = [relative_error(half[name], wanted.gradients[name]) for name in manifest.trained_shapes()]
    loss = abs(found.loss - wanted.loss) / abs(wanted.loss)
    in_integers = integers_error(oracle, store, manifest)
    return Parity(manifest.level.name, loss, gradients, float(np.max(errors, initial=0.0)), in_integers)


def integers_error(oracle: Oracle, store: BlobStore, manifest: Manifest) -> float:
    """How far products in integers put the gradient off, as a share of its norm; 0 where there are none.

    The gradient is that of all blocks' adapters (a classifier's own is exact), the error the largest of any way to keep
    activations.
    """
    structures = manifest.structures.values()
    if not any(structure.backward_integers for structure in structures):
        return 0.0
    walk = ReferenceWalk(store, manifest)
    kept_bits = {0} | {keeping.bits for structure in structures for keeping in structure.keepings}
    exact, *found = (
        _joined(walk.run(oracle.adapter, oracle.batch, bits, integers=integers))
        for bits, integers in [(0, False), *((bits, True) for bits in sorted(kept_bits))]
    )
    errors = [np.linalg.norm(gradient - exact) / np.linalg.norm(exact) for gradient in found]
    return float(np.max(errors))


def _joined(outcome: Outcome) -> Array:
    """The blocks' gradients as one vector."""
    blocks = [gradient for name, gradient in sorted(outcome.gradients.items()) if not name.startswith("head/")]
    return np.concatenate([gradient.ravel() for gradient in blocks])


def check_artifact(folder: pathlib.Path, model: pathlib.Path, report: Report = silent) -> list[Parity]:
    """Compare every level of an artifact with the model, files verified first. Raises ExportError."""
    manifests = read_artifact(folder)
    of = len(manifests) + 1
    report(Progress("verify files", "", 0, of))
    verify_files(folder, manifests.values())
    oracles: dict[tuple[AdapterRequest, Surgery], Oracle] = {}
    results = []
    for k, (name, manifest) in enumerate(manifests.items(), 1):
        report(Progress("parity", name, k, of))
        foundation, request = open_same_foundation(model, manifest), AdapterRequest.of(manifest.adapter)
        surgery = manifest.level.surgery
        if (request, surgery) not in oracles:
            operated = None if surgery == WHOLE else operated_model(foundation, surgery, request.targets)
            oracles[request, surgery] = Oracle(adapt(foundation, request, 0, operated))
        results.append(check_parity(oracles[request, surgery], BlobStore(folder), manifest))
    return results


def require_parity(parity: Parity) -> None:
    """Raise ParityError unless all errors are within the bound."""
    if parity.holds:
        return
    found = [
        (*max(parity.errors.items(), key=lambda item: badness(item[1])), parity.allowed),
        ("a gradient with activations kept in 16 bits", parity.kept_in_half, HALF_BOUND),
        ("the gradient in integers", parity.in_integers, INTEGERS_BOUND),
    ]
    what, off, allowed = next(one for one in found if not one[1] <= one[2])
    msg = f"level {parity.level}: {what} is off by {off:.1e}, allowed is {allowed:.0e}"
    raise ParityError(msg)


def relative_error(found: Array, wanted: Array) -> float:
    """Largest |found - wanted| over largest |wanted|; the absolute error where `wanted` is zero throughout."""
    scale = float(np.abs(wanted).max())
    return float(np.abs(found - wanted).max()) / (scale or 1.0)


def torch_loss(model: nn.Module, task: TaskType, batch: Batch) -> torch.Tensor:
    """The loss as transformers computes it: mean over predicted tokens, or over rows."""
    if batch.pixels is not None:
        pixels = scaled(model, torch.from_numpy(batch.pixels)).to(next(model.parameters()).dtype)
        found: torch.Tensor = model(pixel_values=pixels, labels=torch.from_numpy(batch.labels)).loss
        return found
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.attention_mask)
    labels = torch.from_numpy(batch.labels)
    if not task.classifies:
        labels = ids.masked_fill(mask == 0, IGNORED)
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


def draw_batch(foundation: Foundation, seed: int) -> Batch:
    """A batch that the model can take: random tokens and labels, the first row full and the others padded; or images.

    Of tokens that have labels some have none, but the first of each row.

    The padding's id is none of the tokens': transformers may take it for padding wherever it stands.
    """
    generator, model = np.random.default_rng(seed), foundation.spec
    if model.image is not None:
        pixels = generator.integers(0, 256, (ROWS, *model.image.shape), np.uint8)
        mask = np.ones((ROWS, model.max_tokens), np.int64)
        return Batch(mask[:, :0], mask, generator.integers(0, len(model.labels), ROWS), pixels)
    padding = foundation.padding
    tokens = min(TOKENS, model.max_tokens)
    lengths = np.array([tokens, *generator.integers(2, tokens, ROWS - 1)])
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    ids = generator.integers(0, model.vocabulary - 1, (ROWS, tokens))
    ids = np.where(mask, ids + (ids >= padding), padding)
    if not model.task.labels_tokens:
        return Batch(ids, mask, generator.integers(0, max(1, len(model.labels)), ROWS))
    labels, chance = generator.integers(0, len(model.labels), ids.shape), generator.random(ids.shape)
    chance[:, 0] = 1
    return Batch(ids, mask, np.where((mask > 0) & (chance >= UNLABELLED), labels, IGNORED))
