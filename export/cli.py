"""Commands: export, build, parity, inspect, plug-in, evaluate.

    python -m export.cli export MODEL_DIR --task causal-lm --out DIR

torch and all that needs it is imported by the command that runs, not by the parser: --help answers at once.
Exit status: 0 done, 1 a check failed, 2 wrong input (one line on standard error, nothing written).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge_sdk.wire.errors import WireError
from edge_sdk.wire.manifest import TaskType
from export.errors import ExportError, ParityError

if TYPE_CHECKING:
    from export.build import BuildRequest, Progress

FAILED, WRONG_INPUT = 1, 2


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register all commands; each parser's `run` default takes the parsed arguments and returns the exit status."""
    _add_export(subparsers)
    command = _add(subparsers, "build", _build, "build several levels from a JSON request; one JSON line per stage")
    command.add_argument("request", type=pathlib.Path, metavar="REQUEST.json")
    command = _add(subparsers, "parity", _parity, "compare an artifact's gradients with torch's")
    command.add_argument("artifact", type=pathlib.Path, metavar="DIR")
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR")
    command = _add(subparsers, "inspect", _inspect, "show an artifact's levels, sizes and costs")
    command.add_argument("artifact", type=pathlib.Path, metavar="DIR")
    _add_plug_in(subparsers)
    _add_evaluate(subparsers)


def main(argv: Sequence[str] | None = None) -> int:
    """The commands by themselves."""
    parser = argparse.ArgumentParser(prog="python -m export.cli", description=(__doc__ or "").partition("\n")[0])
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _add(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    help_text: str,
) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=help_text, description=help_text)
    command.set_defaults(run=lambda arguments: _guarded(run, arguments))
    return command


def _guarded(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command; expected failures become one line and a status."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are folders; nothing is looked up anywhere
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was half-written is removed
    try:
        return run(arguments)
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (ExportError, WireError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _add_export(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(subparsers, "export", _export, "write a training artifact of a model, one emulator level")
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR", help="as save_pretrained writes it")
    command.add_argument("--task", required=True, choices=[task.value for task in TaskType])
    command.add_argument(
        "--out", required=True, type=pathlib.Path, metavar="DIR", help="the artifact; may hold other levels"
    )
    command.add_argument("--level", default="", help="the level's name (default: says what it is, like int8-last6)")
    command.add_argument("--adapter", default="lora", help="kind of adapter (default: lora)")
    command.add_argument("--rank", type=int, default=8, help="rank of its factors (default: 8)")
    command.add_argument("--alpha", type=float, default=16.0, help="scaling is alpha / rank (default: 16)")
    command.add_argument("--targets", type=_names, default=(), help="modules to adapt (default: the family's)")
    command.add_argument("--bits", type=int, default=32, help="bits of a frozen weight, 32 or 8 (default: 32)")
    command.add_argument("--layers", type=int, default=None, help="layers to keep (default: all)")
    command.add_argument("--train-last", type=int, default=None, help="layers to train, from the last (default: all)")
    command.add_argument("--tokens", type=int, default=128, help="length at which costs are measured (default: 128)")
    command.add_argument("--labels", type=_names, default=(), help="class names by index, comma-separated")
    command.add_argument("--seed", type=int, default=0, help="draws the adapter's starting values (default: 0)")
    command.add_argument("--no-parity", action="store_true", help="do not compare the gradients with torch's")


def _export(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from export.build import build

    console = Console(stderr=True)
    with console.status("export") as status:

        def show(progress: Progress) -> None:
            status.update(f"[{progress.done}/{progress.of}] {progress.stage} {progress.level}")

        (built,) = build(_request(arguments), show)
    if built.parity is not None:
        print(f"largest relative gradient error {built.parity.worst:.1e}")
    return _inspect(argparse.Namespace(artifact=arguments.out))


def _request(arguments: argparse.Namespace) -> BuildRequest:
    from export.adapters import AdapterRequest
    from export.build import BuildRequest
    from export.levels import LevelRequest, default_name

    shape = (arguments.bits, arguments.layers, arguments.train_last)
    return BuildRequest(
        model=arguments.model,
        task=TaskType(arguments.task),
        out=arguments.out,
        adapter=AdapterRequest(arguments.adapter, arguments.rank, arguments.alpha, arguments.targets),
        levels=(LevelRequest(arguments.level or default_name(*shape), *shape),),
        labels=arguments.labels,
        tokens=arguments.tokens,
        parity=not arguments.no_parity,
        seed=arguments.seed,
    )


def _build(arguments: argparse.Namespace) -> int:
    from export.build import build, read_request

    def show(progress: Progress) -> None:
        print(json.dumps(dataclasses.asdict(progress)), flush=True)

    build(read_request(arguments.request), show)
    return 0


def _parity(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from export.report import check_artifact, parity_table

    results = check_artifact(arguments.artifact, arguments.model)
    Console().print(parity_table(results))
    return 0 if all(result.holds for result in results) else FAILED


def _inspect(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from export.report import cost_table, level_table, read_artifact

    manifests = read_artifact(arguments.artifact)
    console = Console()
    console.print(level_table(manifests))
    for manifest in manifests.values():
        if manifest.costs:
            console.print(cost_table(manifest))
    return 0


def _add_plug_in(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(subparsers, "plug-in", _plug_in, "put a trained adapter into the full model: a PEFT checkpoint")
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR")
    command.add_argument("manifest", type=pathlib.Path, metavar="LEVEL.manifest", help="of any level, beside its blobs")
    command.add_argument("adapter", type=pathlib.Path, metavar="ADAPTER.safetensors")
    command.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="must not exist")


def _plug_in(arguments: argparse.Namespace) -> int:
    from export.plug_in import plug_in

    loss = plug_in(arguments.model, arguments.manifest, arguments.adapter, arguments.out)
    print(json.dumps({"checkpoint": str(arguments.out), "reloaded_loss": loss}))
    return 0


def _add_evaluate(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(subparsers, "evaluate", _evaluate, "held-out loss of the full model, as JSON")
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR")
    command.add_argument("tokens", type=pathlib.Path, metavar="TOKEN_DIR", help="ids.npy, lengths.npy [, labels.npy]")
    command.add_argument("--manifest", required=True, type=pathlib.Path, help="of any level of the model")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--adapter", type=pathlib.Path, help="a tensor file (default: the starting values)")
    which.add_argument("--peft", type=pathlib.Path, help="a PEFT checkpoint")


def _evaluate(arguments: argparse.Namespace) -> int:
    from export.evaluate import evaluate, read_tokens
    from export.plug_in import load_plugged, read_manifest

    manifest = read_manifest(arguments.manifest)
    tokens = read_tokens(arguments.tokens, manifest.model.task)
    model = load_plugged(arguments.model, arguments.manifest, arguments.adapter, arguments.peft)
    print(json.dumps(dataclasses.asdict(evaluate(model, manifest.model.task, tokens))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
