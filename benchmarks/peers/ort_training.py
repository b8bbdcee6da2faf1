"""One training step of onnxruntime-training 1.19.2, the last release, measured in a process of its own.

    python -m benchmarks.peers.ort_training MODEL_DIR --tokens 128 --batch 1 --steps 5 [--targets c_attn] [--lean]

The step of `benchmarks.peers.torch_peft` on the same rows, from the same adapter: what differs is the runtime. Its
artifacts are made first and kept in the user's cache folder; neither that nor torch, which exports the forward graph,
is in the peak. `--lean` turns the runtime's memory arena and memory pattern off. Prints one JSON object (see
measure.report). Causal language models whose graph stays under protobuf's 2 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks import venvs
from benchmarks.fetch import FetchError, cache_folder, cached, say
from edge_sdk.wire.blobs import blob_of_file
from edge_sdk.wire.errors import last_line

ROOT = pathlib.Path(__file__).parents[2]
OPSET = 15  # the gradient builder knows no LayerNormalization, which exporters write from 17 on


def export_forward(model: pathlib.Path, targets: list[str], batch: int, tokens: int, out: pathlib.Path) -> None:
    """Write the graph from `ids` [batch, tokens] to `logits` [batch x tokens, vocabulary], adapters in it, to `out`."""
    import torch

    from benchmarks.peers.torch_peft import tuned_model

    class Logits(torch.nn.Module):
        """The model on whole rows; its causal mask is given, as the code that would make one cannot be exported."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner
            mask = torch.full((1, 1, tokens, tokens), torch.finfo(torch.float32).min).triu(diagonal=1)
            self.register_buffer("mask", mask)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(input_ids=ids, attention_mask=self.mask, use_cache=False).logits
            return logits.flatten(0, 1)

    tuned = tuned_model(model, "causal-lm", targets, attn_implementation="eager")
    torch.onnx.export(
        Logits(tuned.get_base_model().eval()),
        (torch.zeros(batch, tokens, dtype=torch.int64),),
        out,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        opset_version=OPSET,
        do_constant_folding=False,
        input_names=["ids"],
        output_names=["logits"],
    )


def artifacts_of(
    model: pathlib.Path, targets: list[str], batch: int, tokens: int, cache: pathlib.Path | None = None
) -> pathlib.Path:
    """The folder with the artifacts for this model and shape, made if it is not there. Raises FetchError."""
    python = venvs.python_of("ort-training", cache)
    files = [*sorted(model.glob("*.json")), *sorted(model.glob("*.safetensors"))]
    files += [pathlib.Path(__file__).with_name(f"{name}.py") for name in ("ort_training", "ort_stages", "torch_peft")]
    contents = [blob_of_file(file).sha256 for file in files]
    made_from = json.dumps([sorted(targets), batch, tokens, contents, python.parent.parent.name])
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]

    def build(folder: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            forward = pathlib.Path(temporary, "forward.onnx")
            say(f"exporting {model.name} with torch, {batch} x {tokens} tokens")
            export_forward(model, targets, batch, tokens, forward)
            say("making onnxruntime-training's artifacts")
            command = stage(python, "artifacts", str(forward), str(folder))
            # Its thousands of lines about each graph pass cannot be turned off.
            done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            last = last_line(done.stderr, "no output")
            msg = f"onnxruntime-training made no artifacts of {model.name} (exit {done.returncode}): {last}"
            raise FetchError(msg)

    return cached((cache or cache_folder()) / "peers" / f"ort-training-{digest}", build)


def stage(python: pathlib.Path, *arguments: str) -> list[str]:
    """The command of a stage, to be run from the repository's root: nothing of ours is installed there."""
    return [str(python), "-m", "benchmarks.peers.ort_stages", *arguments]


def main() -> int:
    """Make what is missing, then measure in the other environment; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.ort_training")
    parser.add_argument("model", type=pathlib.Path, help="a Hugging Face folder")
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lean", action="store_true", help="without memory arena and memory pattern")
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    try:
        folder = artifacts_of(model, arguments.targets, arguments.batch, arguments.tokens)
        python = venvs.python_of("ort-training")
    except FetchError as error:
        say(f"error: {error}")
        return 1
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    step = ["step", str(folder), "--vocabulary", str(config["vocab_size"]), "--steps", str(arguments.steps)]
    step += ["--tokens", str(arguments.tokens), "--batch", str(arguments.batch), *["--lean"] * arguments.lean]
    return subprocess.run(stage(python, *step), check=False, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
