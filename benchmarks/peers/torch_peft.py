"""One training step of torch + peft, measured in this process: the usual way, on a machine that could hold it.

    python -m benchmarks.peers.torch_peft MODEL_DIR --tokens 128 --batch 1 --steps 5 [--targets c_attn] [--last 6]
        [--task sequence-classification|image-classification] [--checkpointing]

LoRA r=8, AdamW, full rows of random tokens or random images as large as the folder's preprocessor makes them, fp32,
all of torch's threads. `--targets` are the modules that get an adapter; `--last K` trains those of the last K layers
alone. Dropout is off, as in the step that it is compared with.
Prints one JSON object (see measure.report).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from benchmarks.peers.measure import ALPHA, BETAS, DECAY, EPSILON, RANK, RATE, random_rows, report

LABELS = 2
IMAGES = "image-classification"
TASKS: dict[str, tuple[Any, TaskType | None, dict[str, Any]]] = {
    "causal-lm": (transformers.AutoModelForCausalLM, TaskType.CAUSAL_LM, {}),
    "sequence-classification": (
        transformers.AutoModelForSequenceClassification,
        TaskType.SEQ_CLS,
        {"num_labels": LABELS},
    ),
    IMAGES: (transformers.AutoModelForImageClassification, None, {"num_labels": LABELS}),
}


def tuned_model(folder: pathlib.Path, task: str, targets: list[str], **load: Any) -> PeftModel:  # noqa: ANN401
    """The model in `folder` with a LoRA adapter on each of `targets`, in training mode, without dropout.

    `load` goes to `from_pretrained`. What it does not find there (the adapter, a classifier) is drawn from one seed.
    """
    loader, peft_task, more = TASKS[task]
    torch.manual_seed(0)
    model = loader.from_pretrained(folder, dtype=torch.float32, **more, **load)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # GPT-2's Conv1D holds its weight transposed.
    transposed = model.config.model_type == "gpt2"
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=targets,
        task_type=peft_task,
        fan_in_fan_out=transposed,
        modules_to_save=["classifier"] if task == IMAGES else None,  # peft has no such task
    )
    tuned: PeftModel = get_peft_model(model, config)
    return tuned.train()


def freeze_below(tuned: PeftModel, last: int) -> None:
    """Leave the adapters of the last `last` layers trainable, and no others; a classifier's head stays as it is.

    Raises ValueError when the model has fewer layers.
    """
    layers = tuned.config.num_hidden_layers
    if not 0 < last <= layers:
        msg = f"the model has {layers} layers, and {last} were asked for"
        raise ValueError(msg)
    for name, parameter in tuned.named_parameters():
        if (layer := re.search(r"\.(\d+)\.", name)) and int(layer[1]) < layers - last:
            parameter.requires_grad = False


def images_of(folder: pathlib.Path, channels: int, batch: int) -> dict[str, torch.Tensor]:
    """Random images as large as the folder's preprocessor makes them, and labels in turn."""
    side = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["crop_size"]["height"]
    return {"pixel_values": torch.rand(batch, channels, side, side), "labels": torch.arange(batch) % LABELS}


def batch_of(tuned: PeftModel, task: str, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random rows and what they should lead to: their own tokens, or labels in turn."""
    ids = torch.tensor(random_rows(tuned.config.vocab_size, batch, tokens))
    return {"input_ids": ids, "labels": ids if task == "causal-lm" else torch.arange(batch) % LABELS}


def main() -> None:
    """Measure, print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.torch_peft")
    parser.add_argument("model", type=pathlib.Path, help="a Hugging Face folder")
    parser.add_argument("--task", choices=TASKS, default="causal-lm")
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--last", type=int, metavar="K", help="train the adapters of the last K layers alone")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    arguments = parser.parse_args()

    tuned = tuned_model(arguments.model, arguments.task, arguments.targets)
    if arguments.last is not None:
        freeze_below(tuned, arguments.last)
    if arguments.checkpointing:
        tuned.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    if arguments.task == IMAGES:
        batch = images_of(arguments.model, tuned.config.num_channels, arguments.batch)
    else:
        batch = batch_of(tuned, arguments.task, arguments.batch, arguments.tokens)

    def step() -> float:
        loss = tuned(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    report(step, arguments.steps, f"torch {torch.__version__}", torch.get_num_threads())


if __name__ == "__main__":
    main()
