"""What emulator techniques are worth: the loss of levels of SmolLM2-135M on text that none of them saw.

    python -m benchmarks.emulators [--layers 24,15] [--rows 64] [--steps 100] [--rate 1e-4]

No adapter is tuned. Public text is that of one president, held out is another. One line of JSON a level: what was done,
its parameters, the loss in nats per token, and the seconds that it took to make it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator

from benchmarks import assets
from benchmarks.studies import HELD_OUT_PRESIDENT
from edge_sdk.wire.manifest import TaskType
from export.adapters import AdapterRequest
from export.compress.importance import block_influence
from export.compress.surgery import WHOLE, operated_model
from export.emulator import emulator
from export.evaluate import evaluate
from export.fitting import fit
from export.foundation import open_foundation
from export.levels import Drop, LevelRequest, Refitting, default_name, resolve_level
from export.program import adapt
from export.public import PublicRequest, read_public

PUBLIC_PRESIDENT = "abraham_lincoln"
TOKENS, HELD_OUT_ROWS = 128, 16


def main() -> int:
    """Print the lines."""
    arguments = _parser().parse_args()
    folders = assets.speeches()
    foundation = open_foundation(assets.smollm2(), TaskType.CAUSAL_LM, ())
    public = read_public(PublicRequest(folders[PUBLIC_PRESIDENT], rows=arguments.rows), foundation, TOKENS)
    unseen = read_public(PublicRequest(folders[HELD_OUT_PRESIDENT], rows=HELD_OUT_ROWS), foundation, TOKENS)
    lora = AdapterRequest("lora", 8, 16.0).resolved(foundation)
    adapted = adapt(foundation, lora, 0)
    begin = time.monotonic()
    influence = block_influence(adapted.base, public)
    _say("influence", seconds=time.monotonic() - begin)
    for request in (LevelRequest("fp32", 32, None, None), *_requests(arguments)):
        begin = time.monotonic()
        layers = foundation.spec.layers
        level = resolve_level(request, layers, range(layers), influence=influence, public_rows=len(public))
        operated = None if level.surgery == WHOLE else operated_model(foundation, level.surgery, lora.targets)
        own = adapt(foundation, lora, 0, operated)
        fitted = fit(own, operated, level, public, 0, lambda _: None)
        seconds = time.monotonic() - begin
        model, _ = emulator(own, level, fitted)
        loss = evaluate(model, foundation.spec.task, unseen).loss
        _say(request.name, loss=loss, parameters=sum(p.numel() for p in model.parameters()), seconds=seconds)
    return 0


def _requests(arguments: argparse.Namespace) -> Iterator[LevelRequest]:
    """Depths by all techniques."""
    none, least_squares, distill = Refitting.NONE, Refitting.LEAST_SQUARES, Refitting.DISTILL
    kinds = [(drop, refit) for refit in (none, least_squares) for drop in Drop] + [(Drop.IMPORTANCE, distill)]
    for layers in arguments.layers:
        for drop, refit in kinds:
            level = LevelRequest("", 32, layers, None, drop=drop, refit=refit)
            level = dataclasses.replace(level, distill_steps=arguments.steps, distill_rate=arguments.rate)
            yield dataclasses.replace(level, name=default_name(level))


def _say(what: str, **numbers: float) -> None:
    print(json.dumps({"level": what, **{name: round(number, 3) for name, number in numbers.items()}}), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.emulators", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--layers", type=_numbers, default=(24, 15), metavar="N,...", help="depths (default: 24,15)")
    parser.add_argument("--rows", type=int, default=64, metavar="N", help=f"of {TOKENS} public tokens (default: 64)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of distillation (default: 100)")
    parser.add_argument("--rate", type=float, default=1e-4, metavar="R", help="its learning rate (default: 1e-4)")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
