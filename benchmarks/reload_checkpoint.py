"""The proof that a run's checkpoint is an ordinary PEFT checkpoint: loaded by peft alone, it gives the reported loss.

    python -m benchmarks.reload_checkpoint MODEL_DIR CHECKPOINT TOKEN_FOLDER

uses nothing of fedpeat: transformers loads the model, `PeftModel.from_pretrained` the adapter, and the mean
cross-entropy over the held-out rows (nats per token, or per row for a classifier) is printed as JSON.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def main(model_folder: str, checkpoint: str, tokens: str) -> None:
    """Measure, print JSON."""
    folder = pathlib.Path(tokens)
    ids, lengths = (torch.from_numpy(np.load(folder / f"{name}.npy")).long() for name in ("ids", "lengths"))
    if PeftConfig.from_pretrained(checkpoint).task_type == "SEQ_CLS":
        labels = torch.from_numpy(np.load(folder / "labels.npy"))
        base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=_classes(checkpoint))
    else:
        labels = None
        base = AutoModelForCausalLM.from_pretrained(model_folder)
    model = PeftModel.from_pretrained(base, checkpoint).float().eval()
    total, predictions = 0.0, 0
    with torch.no_grad():
        for row, length in zip(range(len(ids)), lengths.tolist(), strict=True):
            one = ids[row : row + 1, :length]
            logits = model(input_ids=one, attention_mask=torch.ones_like(one)).logits
            wanted = one[0, 1:] if labels is None else labels[row : row + 1]
            scores = logits[0, :-1] if labels is None else logits
            total += float(cross_entropy(scores.double(), wanted, reduction="sum"))
            predictions += len(wanted)
    print(json.dumps({"loss": total / predictions, "predictions": predictions}))


def _classes(checkpoint: str) -> int:
    """How many classes the checkpoint's own classifier has: the base model may have none."""
    from safetensors import safe_open

    with safe_open(pathlib.Path(checkpoint) / "adapter_model.safetensors", framework="pt") as file:
        (name,) = [name for name in file.keys() if name.endswith("classifier.weight")]  # noqa: SIM118 - no mapping
        return int(file.get_slice(name).get_shape()[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
