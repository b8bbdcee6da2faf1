"""`fedpeat-edge`: run, doctor, key, probe, plan, evaluate, prepare, train.

Exit status: 0 done, 1 a check or the task failed, 2 wrong input (one line on standard error), 130 interrupted, 143
terminated. Modules are imported by the command that needs them: `--help` answers at once, and `run` never loads
onnxruntime.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError, EdgeError, TrainingError
from edge_sdk.providers import Provider, require
from edge_sdk.wire.errors import TransportError, WireError, os_error_line
from edge_sdk.wire.lifeline import end_with_parent, exit_on_terminate

if TYPE_CHECKING:
    from edge_sdk.engine.artifact import Artifact
    from edge_sdk.engine.plan import Storage

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    end_with_parent()
    exit_on_terminate()
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except TrainingError as error:
        print(f"fedpeat-edge: {error}", file=sys.stderr)
        return FAILED
    except (EdgeError, WireError, TransportError) as error:
        print(f"fedpeat-edge: {error}", file=sys.stderr)
        return WRONG_INPUT
    except OSError as error:
        print(f"fedpeat-edge: {os_error_line(error)}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedpeat-edge", description="The device's side of fedpeat.")
    parser.add_argument("--version", action="version", version=f"fedpeat {importlib.metadata.version('fedpeat')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_run(commands.add_parser("run", help="be a device of a fleet: wait for tasks, train, send deltas"))

    command = commands.add_parser("doctor", help="check what this device needs; a line and a remedy each")
    command.add_argument("--config", type=pathlib.Path, metavar="device.toml", help="check its broker and store too")
    command.set_defaults(run=_doctor)

    command = commands.add_parser("key", help="this device's line of a roster: its name and its public key")
    command.add_argument("--config", type=pathlib.Path, required=True, metavar="device.toml")
    command.set_defaults(run=_key)

    command = commands.add_parser("probe", help="measure peak memory and step time of an artifact, in fresh processes")
    _add_artifact(command)
    _add_shape(command)
    command.add_argument("--budget", metavar="SIZE", help="probe the fastest plan within it; default: the leanest plan")
    command.add_argument("--steps", type=_positive, default=3)
    _add_integers(command)
    _add_in_memory(command)
    _add_provider(command)
    command.add_argument("--costs-only", action="store_true", help="JSON of the costs alone, without whole steps")
    command.set_defaults(run=_probe)

    command = commands.add_parser("plan", help="show which plan would be chosen for a budget, and the others")
    _add_artifact(command)
    _add_shape(command)
    command.add_argument("--budget", required=True, metavar="SIZE")
    _add_integers(command)
    _add_in_memory(command)
    command.add_argument("--json", action="store_true", help="JSON of the plans that are worth a choice, leanest first")
    command.set_defaults(run=_plan)

    command = commands.add_parser("evaluate", help="loss of an adapter on this artifact's emulator, as JSON")
    _add_artifact(command)
    command.add_argument("--adapter", type=pathlib.Path, help="tensor file; default: the artifact's initial adapter")
    command.add_argument("--data", type=pathlib.Path, required=True, metavar="ROWS_FOLDER")
    command.add_argument("--rows", type=_positive, default=1_000_000, help="at most so many rows")
    command.add_argument("--threads", type=_positive, default=None)
    _add_provider(command)
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("prepare", help="make a token or image folder from private data")
    _add_artifact(command)
    kinds = ("text-folder", "csv", "json-lines", "token-arrays", "image-files", "image-arrays", "idx")
    command.add_argument("--kind", choices=kinds, required=True)
    command.add_argument("--path", type=pathlib.Path, required=True, help="of the folder or file")
    command.add_argument("--text-column", default="text", help="of the CSV")
    command.add_argument("--label-column", default="label", help="of the CSV; read for a classifier")
    command.add_argument("--tokens", type=_positive, default=128, help="the longest row, of text")
    command.add_argument("--rows", type=_positive, help="at most so many rows")
    command.add_argument("--out", type=pathlib.Path, required=True, metavar="ROWS_FOLDER")
    command.set_defaults(run=_prepare)

    command = commands.add_parser("train", help="train on this device's own data, without a coordinator")
    _add_artifact(command)
    _add_shape(command)
    command.add_argument("--data", type=pathlib.Path, required=True, help="text, CSV, images, or a prepared folder")
    command.add_argument("--budget", required=True, metavar="SIZE")
    command.add_argument("--steps", type=_positive, required=True)
    command.add_argument("--learning-rate", type=float, default=1e-3)
    command.add_argument("--seed", type=int, default=0, help="draws the order of the rows; default: 0")
    _add_integers(command)
    _add_provider(command)
    command.add_argument("--json", action="store_true", help="a JSON line a step, and one of the plan and its peak")
    command.add_argument("--out", type=pathlib.Path, required=True, metavar="ADAPTER.safetensors")
    command.set_defaults(run=_train)
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=pathlib.Path, required=True, metavar="device.toml")
    text = "accept a broker on another machine without TLS and certificates"
    command.add_argument("--insecure", action="store_true", help=text)
    command.set_defaults(run=_run)


def _add_artifact(command: argparse.ArgumentParser) -> None:
    command.add_argument("artifact", type=pathlib.Path, help="an artifact folder, or one .manifest in it")
    command.add_argument("--level", help="which level of the folder")


def _add_shape(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tokens", type=_positive, default=128, help="tokens a row, of text")
    command.add_argument("--batch", type=_positive, default=1, help="rows a step")
    command.add_argument("--threads", type=_positive, default=None, help="default: all cores")


def _add_integers(command: argparse.ArgumentParser) -> None:
    help_ = "allow integer products on the way back: faster on some processors, not exact"
    command.add_argument("--integers", action="store_true", help=help_)


def _add_provider(command: argparse.ArgumentParser) -> None:
    choices = [provider.value for provider in Provider]
    command.add_argument("--provider", choices=choices, default=Provider.CPU.value, help="what executes; default: cpu")


def _add_in_memory(command: argparse.ArgumentParser) -> None:
    text = "plan as if the page cache held all weights; default: measure the storage"
    command.add_argument("--in-memory", action="store_true", help=text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        msg = f"{text!r} is no whole number from 1"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from edge_sdk.run import run

    return run(arguments.config, insecure=arguments.insecure)


def _key(arguments: argparse.Namespace) -> int:
    from edge_sdk.config import load_config
    from edge_sdk.identity import Identity

    config = load_config(arguments.config)
    print(f"{config.device} {Identity.of(config).signer.public.hex()}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from edge_sdk import doctor
    from edge_sdk.config import load_config

    config = load_config(arguments.config) if arguments.config else None
    endpoint = (config.broker, config.tls) if config else None
    return doctor.run(endpoint, config.store if config else None)


def _probe(arguments: argparse.Namespace) -> int:
    from edge_sdk.config import all_cores
    from edge_sdk.engine.artifact import choose_manifest, open_artifact
    from edge_sdk.memory import parse_size
    from edge_sdk.probing import probe, probe_costs

    manifest_path, threads = choose_manifest(arguments.artifact, arguments.level), arguments.threads or all_cores()
    provider = Provider(arguments.provider)
    require(provider)
    artifact = open_artifact(manifest_path)
    tokens = artifact.row_tokens(arguments.tokens)
    if arguments.costs_only:
        print(json.dumps(probe_costs(manifest_path, tokens, threads, provider)))
        return 0
    budget_bytes = parse_size(arguments.budget) if arguments.budget else None
    storage, line = _storage(artifact, budget_bytes or artifact.manifest.needs_bytes, in_memory=arguments.in_memory)
    print(line, file=sys.stderr)
    found = probe(
        manifest_path,
        (arguments.batch, tokens),
        arguments.steps,
        threads,
        budget_bytes,
        storage,
        provider,
        integers=arguments.integers,
    )
    print(json.dumps(found))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from edge_sdk.engine.artifact import open_artifact
    from edge_sdk.engine.plan import EXACT, INTEGERS, Declined, choose_plan, frontier, plans
    from edge_sdk.memory import parse_size

    artifact = open_artifact(arguments.artifact, arguments.level)
    manifest, budget_bytes = artifact.manifest, parse_size(arguments.budget)
    shape, integers = (arguments.batch, artifact.row_tokens(arguments.tokens)), arguments.integers
    storage, line = _storage(artifact, budget_bytes, in_memory=arguments.in_memory)
    if arguments.json:
        found = frontier(plans(manifest, *shape, budget_bytes, storage, integers=integers))
        print(json.dumps({"plans": [dataclasses.asdict(plan) for plan in found if plan.peak_bytes <= budget_bytes]}))
        return 0
    print(line)
    chosen = choose_plan(manifest, *shape, budget_bytes, storage=storage, integers=integers)
    print("   micro-batch  head rows  kept blocks  in bits  resident  back bits   peak MB   step ms")
    fitting = plans(manifest, *shape, budget_bytes, storage, integers=integers)
    everything = [*fitting, *plans(manifest, *shape, storage=storage, integers=integers)]
    shown = [frontier(plan for plan in everything if plan.back_bits == bits) for bits in (EXACT, INTEGERS)]
    for plan in itertools.chain(*shown):
        kept = f"{plan.kept_blocks:12}{plan.kept_bits if plan.kept_blocks else '-':>9}{plan.resident:10}"
        sizes = f"{plan.back_bits:11}{plan.peak_bytes / 1e6:10.0f}{plan.step_ms:10.0f}"
        line = f"{plan.micro_batch:11}{plan.head_rows:11} {kept}{sizes}"
        print("->" if plan == chosen else "  ", line if plan.peak_bytes <= budget_bytes else f"{line}  over budget")
    if integers and manifest.integers_error:
        print(f"with 8 bits back, gradients are off by {manifest.integers_error:.1%}; a worker tries them out first")
    if isinstance(chosen, Declined):
        print(f"nothing fits {budget_bytes / 1e6:.0f} MB; the leanest plan needs {chosen.needed_bytes / 1e6:.0f} MB")
        return FAILED
    return 0


def _storage(artifact: Artifact, budget_bytes: int, *, in_memory: bool) -> tuple[Storage, str]:
    """Where the weights are read from, and a line about it."""
    from edge_sdk import storage
    from edge_sdk.engine.plan import FAST_STORAGE

    if in_memory:
        return FAST_STORAGE, "storage not measured: all weights count as in memory"
    try:
        found = storage.measure(artifact.largest_path(), budget_bytes)
    except storage.NotMeasured as error:
        return FAST_STORAGE, storage.unknown(error)
    return found, storage.said(found)


def _evaluate(arguments: argparse.Namespace) -> int:
    from edge_sdk.engine.runtime import use
    from edge_sdk.local import evaluate

    use(Provider(arguments.provider))
    found = evaluate(
        arguments.artifact,
        arguments.data,
        level=arguments.level,
        adapter=arguments.adapter,
        rows=arguments.rows,
        threads=arguments.threads,
    )
    print(json.dumps(dataclasses.asdict(found)))
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from edge_sdk.config import DataConfig, DataKind
    from edge_sdk.engine.artifact import open_artifact
    from edge_sdk.prepare import prepare
    from edge_sdk.sources import open_source

    artifact = open_artifact(arguments.artifact, arguments.level)
    model, tokenizer = artifact.manifest.model, artifact.manifest.tokenizer
    config = DataConfig(
        kind=DataKind(arguments.kind),
        path=arguments.path,
        text_column=arguments.text_column,
        label_column=arguments.label_column,
    )
    found = prepare(
        open_source(config, model.labels, model.image),
        artifact.path(tokenizer) if tokenizer else None,
        tokens=artifact.row_tokens(arguments.tokens),
        out=arguments.out.absolute(),
        labels=model.labels,
        max_rows=arguments.rows,
        image=model.image,
        labels_tokens=model.task.labels_tokens,
    )
    print(json.dumps(dataclasses.asdict(found)))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from edge_sdk.engine.runtime import use
    from edge_sdk.local import open_artifact, train
    from edge_sdk.memory import parse_size, read_memory

    use(Provider(arguments.provider))
    _require_writable(arguments.out)
    budget_bytes = parse_size(arguments.budget)
    training = train(
        open_artifact(arguments.artifact, arguments.level),
        arguments.data,
        budget_bytes=budget_bytes,
        steps=arguments.steps,
        batch=arguments.batch,
        tokens=arguments.tokens,
        learning_rate=arguments.learning_rate,
        threads=arguments.threads,
        seed=arguments.seed,
        integers=arguments.integers,
    )
    for report in training:
        line = f"step {report.step} of {report.steps}: loss {report.loss:.4f}, {report.time_ms:.0f} ms"
        print(json.dumps(dataclasses.asdict(report)) if arguments.json else line, flush=True)
    training.save_adapter(arguments.out)
    if arguments.json:
        found = {"budget_bytes": budget_bytes, "peak_bytes": read_memory().peak_bytes}
        print(json.dumps({**found, "plan": dataclasses.asdict(training.plan)}))
    return 0


def _require_writable(out: pathlib.Path) -> None:
    """Say before the training, not after it, that its result could not be kept. Raises ConfigError."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        msg = f"{out} is a folder; name a file" if out.is_dir() else f"{folder} is no folder that can be written to"
        raise ConfigError(msg)


if __name__ == "__main__":
    sys.exit(main())
