"""Random models in the shapes of published ones: for what a step costs, where what it learns is of no interest.

    python -m benchmarks.shapes [gpt2-124m|tinyllama-22|tinyllama-44 ...]

makes what is missing of the model folders and of their artifacts, in the user's cache folder, and prints the artifacts'
paths. No layer has another one's values: blobs are named by their content, and equal layers would be one file on the
disk and in the page cache.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from benchmarks import studies
from benchmarks.fetch import say
from export.cache import cache_folder, cached

RECIPE = 1  # goes up when the same shape gets other files
SPREAD = 0.02  # standard deviation of a weight, as both families' own initialisation has it
FP32, INT8 = {"name": "fp32", "bits": 32}, {"name": "int8", "bits": 8}
LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model without its values: `sizes` are the configuration's of transformers' `family`."""

    name: str
    family: str
    sizes: Mapping[str, Any]
    levels: Sequence[Mapping[str, Any]]


def tinyllama(layers: int, levels: Sequence[Mapping[str, Any]]) -> Shape:
    """TinyLlama-1.1B's shape (https://arxiv.org/abs/2401.02385, table 1), with any number of layers; it has 22."""
    sizes = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    return Shape(f"tinyllama-{layers}", "llama", sizes, levels)


# transformers' defaults are GPT-2-124M's sizes: 12 layers of width 768, a vocabulary of 50257, 1024 positions.
GPT2 = Shape("gpt2-124m", "gpt2", {}, (FP32, INT8))
# At 44 layers fp32 alone would be 8.3 GB more; int8 is enough to compare depths.
SHAPES = {shape.name: shape for shape in (GPT2, tinyllama(22, (FP32, INT8)), tinyllama(44, (INT8,)))}


def model_of(shape: Shape) -> pathlib.Path:
    """The shape as a model folder without tokenizer, in float16, drawn once and kept in the cache folder."""

    def build(folder: pathlib.Path) -> None:
        say(f"drawing {shape.name}")
        write_model(shape, folder)

    return cached(cache_folder() / f"random-{shape.name}-{RECIPE}", build)


def artifact_of(shape: Shape) -> pathlib.Path:
    """The shape's levels as artifacts, with LoRA r=8 on the family's own targets, kept in the cache folder.

    Gradients are not compared with torch's: that holds the model twice. An artifact that an earlier state of the
    exporter or the engine has made is deleted, for it may have gigabytes. Raises RuntimeError with the exporter's own
    words when the build fails.
    """
    request = studies.request_of(
        {"dir": str(model_of(shape)), "task": "causal-lm"},
        {"kind": "lora", "rank": 8, "alpha": 16, "targets": []},
        shape.levels,
        studies.TOKENS,
        parity=False,
    )
    return studies.newest(shape.name, request)


def write_model(shape: Shape, folder: pathlib.Path) -> None:
    """Draw the model's values into `folder`, a file per layer: one layer is the most that is held in memory."""
    import torch
    from safetensors.numpy import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(shape.family, **shape.sizes, dtype="float16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}  # of tied ones the first alone
    shards = [list(names) for _, names in groupby(shapes, key=LAYER.findall)]
    generator = np.random.default_rng(0)
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _drawn(name, shapes[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _drawn(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float16]]:
    """A norm's factors around 1, a matrix and a bias around 0."""
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= SPREAD
    if len(shape) == 1 and name.endswith(".weight"):
        values += 1
    return values.astype(np.float16)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the named shapes' artifacts, all by default, and print their paths; 1 when one cannot be had."""
    first = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=first)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHAPES)}; all of them by default")
    asked = parser.parse_args(arguments).names or list(SHAPES)
    if unknown := sorted(set(asked) - SHAPES.keys()):
        parser.error(f"no shape is called {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    try:
        for name in asked:
            print(artifact_of(SHAPES[name]))
    except (RuntimeError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half-made is left")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
