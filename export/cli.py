"""Commands: families, describe, export, build, parity, inspect, plug-in, evaluate.

    python -m export.cli export MODEL_DIR --task causal-lm --out DIR

torch and all that needs it is imported by the command that runs, not by the parser: --help answers at once.
Exit status: 0 done, 1 a check failed, 2 wrong input (one line on standard error, nothing written), 130 stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edge_sdk.wire.errors import WireError, os_error_line
from edge_sdk.wire.lifeline import end_with_parent, exit_on_terminate
from edge_sdk.wire.manifest import TaskType
from export import manual
from export.errors import ExportError, ParityError
from export.kinds import why_no_start
from export.levels import Drop, LevelRequest, Refitting, default_name
from export.options import adapter_of, add_adapter, names

if TYPE_CHECKING:
    from edge_sdk.wire.manifest import Manifest
    from export.build import BuildRequest
    from export.progress import Progress
    from export.public import PublicRequest

FAILED, WRONG_INPUT, STOPPED = 1, 2, 130
RUNTIMES = ("onnxruntime", "ort-training")
TOKENS = 128


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register all commands; each parser's `run` default takes the parsed arguments and returns the exit status."""
    _add(subparsers, "families", _families, manual.FAMILIES)
    _add_describe(subparsers)
    _add_export(subparsers)
    command = _add(subparsers, "build", _build, manual.BUILD)
    command.add_argument("request", type=pathlib.Path, metavar="REQUEST.json")
    command = _add(subparsers, "parity", _parity, manual.PARITY)
    command.add_argument("artifact", type=pathlib.Path, metavar="DIR", help="an artifact, as export writes it")
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR", help="the model that it was made of")
    command = _add(subparsers, "inspect", _inspect, manual.INSPECT)
    command.add_argument("artifact", type=pathlib.Path, metavar="DIR", help="an artifact, as export writes it")
    _add_plug_in(subparsers)
    _add_evaluate(subparsers)


def main(argv: Sequence[str] | None = None) -> int:
    """The commands by themselves."""
    end_with_parent()
    parser = argparse.ArgumentParser(prog="python -m export.cli", description=(__doc__ or "").partition("\n")[0])
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _add(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """A command whose help is `text`: its first paragraph in the list of commands, all of it in its own help."""
    first, _, rest = text.partition("\n\n")
    command = subparsers.add_parser(
        name,
        help=first[0].lower() + first[1:].rstrip("."),
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=lambda arguments: _guarded(run, arguments))
    return command


def _guarded(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command; expected failures become one line and a status."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are folders; nothing is looked up anywhere
    # Before torch is loaded: its threads spin while they wait, and beside one other busy process a parity check then
    # took 25 s instead of 1 s on two cores (measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    exit_on_terminate()
    try:
        return run(arguments)
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (ExportError, WireError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except OSError as error:
        print(f"error: {os_error_line(error)}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return STOPPED


def _families(_arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from export.families import all_families
    from export.report import family_table

    Console().print(family_table(all_families()))
    return 0


def _add_describe(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(subparsers, "describe", _describe, manual.DESCRIBE)
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR", help="as save_pretrained writes it")
    command.add_argument("--task", required=True, choices=[task.value for task in TaskType])
    command.add_argument("--labels", type=names, default=(), metavar="A,B,...", help="class names by index")


def _describe(arguments: argparse.Namespace) -> int:
    from export.describe import describe
    from export.foundation import open_foundation

    print(json.dumps(describe(open_foundation(arguments.model, TaskType(arguments.task), arguments.labels))))
    return 0


def _add_export(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(subparsers, "export", _export, manual.EXPORT)
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR", help="as save_pretrained writes it")
    command.add_argument("--task", required=True, choices=[task.value for task in TaskType])
    command.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="new, empty, or has levels")
    command.add_argument("--labels", type=names, default=(), metavar="A,B,...", help="class names by index")
    command.add_argument("--runtime", choices=RUNTIMES, default=RUNTIMES[0], help="see below (default: onnxruntime)")
    group = command.add_argument_group("adapter")
    add_adapter(group)
    group.add_argument("--seed", type=int, default=0, metavar="N", help="draws its starting values (default: 0)")
    group.add_argument("--start", type=pathlib.Path, metavar="DIR", help="a sparse checkpoint its factors begin from")
    group = command.add_argument_group("emulator level")
    group.add_argument("--bits", type=int, default=32, metavar="32|16|8|4", help="of a frozen weight (default: 32)")
    group.add_argument("--layers", type=int, default=None, metavar="N", help="layers to keep (default: all)")
    group.add_argument("--train-last", type=int, default=None, metavar="N", help="layers to train (default: all kept)")
    group.add_argument("--level", default="", metavar="NAME", help="its name (default: as in int8-24layers-last6)")
    group.add_argument("--drop", default="uniform", choices=[rule.value for rule in Drop], help="which layers go")
    group.add_argument("--ffn", type=float, default=1.0, metavar="S", help="share of FFN neurons to keep (default: 1)")
    group.add_argument("--svd", type=names, default=(), metavar="A,B,...", help="modules to hold at a lower rank")
    group.add_argument("--svd-rank", type=int, default=0, metavar="R", help="that rank")
    group.add_argument("--refit", default="none", choices=[one.value for one in Refitting], help="see below")
    group.add_argument("--distill-steps", type=int, default=100, metavar="N", help="its steps (default: 100)")
    group.add_argument("--distill-rate", type=float, default=None, metavar="R", help="learning rate; see below")
    group.add_argument("--tensors-mb", type=float, default=None, metavar="MB", help="fewer bits, where they harm least")
    _add_public(command)
    group = command.add_argument_group("checks")
    group.add_argument("--tokens", type=int, default=None, metavar="N", help="a text's length for costs (default: 128)")
    group.add_argument("--no-parity", action="store_true", help="do not compare the gradients with torch's")


def _add_public(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("public data, for --drop importance, --refit and --tensors-mb")
    group.add_argument("--public", type=pathlib.Path, metavar="DATA", help="folder of .txt, .csv, or token folder")
    group.add_argument("--text-column", default="text", metavar="NAME", help="of a .csv (default: text)")
    group.add_argument("--public-rows", type=int, default=16, metavar="N", help="rows of it to use (default: 16)")


def _public(arguments: argparse.Namespace) -> PublicRequest | None:
    from export.public import PublicRequest

    if arguments.public is None:
        return None
    return PublicRequest(arguments.public, arguments.text_column, arguments.public_rows)


def _export(arguments: argparse.Namespace) -> int:
    from export.folder import read_artifact, require_usable
    from export.progress import narrated

    if arguments.runtime == "ort-training":
        return _export_ort_training(arguments)
    _require_start(arguments)
    require_usable(arguments.out)
    begin = time.monotonic()
    with narrated() as show:
        from export.build import build

        (built,) = build(request_of(arguments), show)
    if built.parity is not None:
        print(f"largest relative gradient error {built.parity.worst:.1e}")
    _say_dropout(arguments)
    print(f"level {built.manifest.level.name} is in {arguments.out} after {time.monotonic() - begin:.0f} s")
    return _show(read_artifact(arguments.out))


def _export_ort_training(arguments: argparse.Namespace) -> int:
    from export.progress import narrated

    if arguments.level or arguments.tokens is not None:
        msg = "--level and --tokens are for a manifest and its costs, which --runtime ort-training has not"
        raise ExportError(msg)
    if arguments.start is not None:
        msg = "--start is for an artifact, whose adapter begins there; --runtime ort-training has none"
        raise ExportError(msg)
    begin = time.monotonic()
    with narrated() as show:
        from export.ort_training.artifacts import write_artifacts

        parity = write_artifacts(request_of(arguments), show)
    if parity is not None:
        print(f"largest relative error of loss and gradients {parity.worst:.1e}")
    _say_dropout(arguments)
    files = sorted(arguments.out.iterdir())
    sizes = ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in files)
    print(f"{sizes} are in {arguments.out} after {time.monotonic() - begin:.0f} s")
    return 0


def _require_start(arguments: argparse.Namespace) -> None:
    """Refuse at once what could only fail after the model is loaded."""
    if arguments.start is None:
        return
    if why := why_no_start(arguments.adapter):
        msg = f"--start {why}"
        raise ExportError(msg)
    if not arguments.start.is_dir():
        msg = f"--start is {arguments.start}, which is no folder"
        raise ExportError(msg)


def _say_dropout(arguments: argparse.Namespace) -> None:
    from export.foundation import open_foundation

    if dropout := open_foundation(arguments.model, TaskType(arguments.task), arguments.labels).dropout:
        print(f"dropout is zero on devices; config.json has {', '.join(f'{k} {v:g}' for k, v in dropout.items())}")


def request_of(arguments: argparse.Namespace) -> BuildRequest:
    """What the options of `export` ask for."""
    from export.adapters import AdapterRequest
    from export.build import BuildRequest

    level = LevelRequest(
        name=arguments.level,
        bits=arguments.bits,
        layers=arguments.layers,
        train_last=arguments.train_last,
        drop=Drop(arguments.drop),
        ffn=arguments.ffn,
        svd=arguments.svd,
        svd_rank=arguments.svd_rank,
        refit=Refitting(arguments.refit),
        distill_steps=arguments.distill_steps,
        distill_rate=arguments.distill_rate,
        tensors_mb=arguments.tensors_mb,
    )
    return BuildRequest(
        model=arguments.model,
        task=TaskType(arguments.task),
        out=arguments.out,
        adapter=AdapterRequest(**adapter_of(arguments)),
        levels=(level if level.name else dataclasses.replace(level, name=default_name(level)),),
        labels=arguments.labels,
        tokens=TOKENS if arguments.tokens is None else arguments.tokens,
        parity=not arguments.no_parity,
        seed=arguments.seed,
        public=_public(arguments),
        start=arguments.start,
    )


def _build(arguments: argparse.Namespace) -> int:
    from export.build import build, read_request
    from export.folder import require_usable

    def show(progress: Progress) -> None:
        print(json.dumps(dataclasses.asdict(progress)), flush=True)

    request = read_request(arguments.request)
    require_usable(request.out, besides=(arguments.request,))
    build(request, show)
    return 0


def _parity(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from export.folder import read_artifact
    from export.progress import narrated
    from export.report import parity_table, verdict

    read_artifact(arguments.artifact)  # before torch: what is no artifact is said at once
    with narrated() as show:
        from export.parity import check_artifact

        results = check_artifact(arguments.artifact, arguments.model, show)
    Console().print(parity_table(results))
    print(verdict(results))
    return 0 if all(result.holds for result in results) else FAILED


def _inspect(arguments: argparse.Namespace) -> int:
    from export.folder import read_artifact, verify_files

    manifests = read_artifact(arguments.artifact)
    verify_files(arguments.artifact, manifests.values())
    return _show(manifests)


def _show(manifests: Mapping[str, Manifest]) -> int:
    from rich.console import Console

    from export.report import cost_table, level_table, summary

    console = Console()
    print(summary(next(iter(manifests.values()))))
    console.print(level_table(manifests))
    for manifest in manifests.values():
        if manifest.costs:
            console.print(cost_table(manifest))
    return 0


def _add_plug_in(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(subparsers, "plug-in", _plug_in, manual.PLUG_IN)
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR")
    command.add_argument("manifest", type=pathlib.Path, metavar="LEVEL.manifest", help="of any level, beside its blobs")
    command.add_argument("adapter", type=pathlib.Path, metavar="ADAPTER.safetensors")
    command.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="must not exist")


def _plug_in(arguments: argparse.Namespace) -> int:
    from export.progress import narrated

    with narrated() as show:
        from export.plug_in import plug_in

        loss = plug_in(arguments.model, arguments.manifest, arguments.adapter, arguments.out, show)
    print(json.dumps({"checkpoint": str(arguments.out), "reloaded_loss": loss}))
    return 0


def _add_evaluate(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(subparsers, "evaluate", _evaluate, manual.EVALUATE)
    command.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR")
    command.add_argument("rows", type=pathlib.Path, metavar="ROWS_DIR", help="a token folder, or an image folder")
    command.add_argument("--manifest", required=True, type=pathlib.Path, help="of any level of the model")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--adapter", type=pathlib.Path, help="a tensor file (default: the starting values)")
    which.add_argument("--peft", type=pathlib.Path, help="a PEFT checkpoint")


def _evaluate(arguments: argparse.Namespace) -> int:
    from export.progress import narrated

    with narrated() as show:
        from export.evaluate import evaluate, read_rows
        from export.folder import read_manifest
        from export.plug_in import load_plugged

        spec = read_manifest(arguments.manifest).model
        rows = read_rows(arguments.rows, spec)
        model = load_plugged(arguments.model, arguments.manifest, arguments.adapter, arguments.peft)
        score = evaluate(model, spec.task, rows, show)
    print(json.dumps(dataclasses.asdict(score)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
