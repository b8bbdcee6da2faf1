"""What a run has to show, as plain data for `report.json`: made from the ledger alone.

    {"run", "name", "status", "model", "rule", "server_optimizer",
     "rounds": [{"round", "attempt", "state", "truncation", "up_bytes", "tasks": [...],
                 "decisions": [{"device", "level", "words", "state"}]}],
     "privacy": {"guarantee", "epsilon", "delta", "doubts", "covers", "rounds": [...]} or null,
     "quarantine": [{"device", "first", "last"}],
     "rollout": [{"level", "halted", "why"}],
     "evaluations": [{"version", "full_loss", "emulator_loss", ...}], "traffic": [...],
     "checks": [{"name", "passed", "detail"}], "versions": {...}}

Bytes are bytes, losses are nats per token or per example, `truncation` is relative (Frobenius). A round's
`up_bytes` are those of the deltas that were accepted; a delta's `size` is the root mean square of its numbers. What was
decided for each task, `decisions` say in words.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from coordinator import example_privacy
from coordinator.config import Config
from coordinator.history import AnswerRow, History, ResultRow
from coordinator.privacy import COVERS, standing
from coordinator.quarantine import Quarantine, Spell

FULL: Final = "full"
EMULATOR: Final = "emulator"
PACKAGES: Final = ("fedpeat", "numpy", "onnxruntime", "paho-mqtt", "msgpack", "torch", "transformers", "peft", "onnx")


@dataclass(frozen=True, slots=True)
class Check:
    """Something a run must have achieved, and whether it did."""

    name: str
    passed: bool
    detail: str


def make_report(history: History, config: Config, status: str, found: Sequence[Check]) -> dict[str, Any]:
    """All of it; `found` is what `checks` found."""
    return {
        "run": history.run,
        "name": history.name,
        "status": status,
        "model": str(config.model.dir),
        "rule": config.aggregation.rule.value,
        "server_optimizer": config.aggregation.optimizer.value,
        "rounds": [_round(history, row.round, row.attempt, row.state) for row in history.rounds],
        "privacy": None if config.privacy is None else _privacy(history, config),
        "quarantine": [dataclasses.asdict(spell) for spell in _quarantine(history, config)],
        "rollout": [dataclasses.asdict(verdict) for verdict in history.verdicts],
        "evaluations": list(_evaluations(history, config)),
        "traffic": [dataclasses.asdict(row) for row in history.traffic],
        "checks": [dataclasses.asdict(check) for check in found],
        "versions": versions(),
    }


def checks(history: History, config: Config, damaged: Sequence[str]) -> tuple[Check, ...]:
    """What has to hold for the run to count as a success.

    `damaged` names blobs whose bytes are not what they were when they were committed.
    """
    found = [_rounds_done(history, config), _budgets_kept(history), _bytes_kept(history, damaged)]
    if config.evaluation is not None:
        found.append(_improved(history, config))
    return tuple(found)


def versions() -> dict[str, str]:
    """What was run with what."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    return found | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _rounds_done(history: History, config: Config) -> Check:
    done, count = history.done, config.rounds.count
    return Check("rounds", done >= count, f"{done} of {count} rounds were aggregated")


def _budgets_kept(history: History) -> Check:
    over = [r for r in history.results if not 0 < r.report.peak_bytes <= r.report.budget_bytes]
    detail = "; ".join(
        f"{r.device} {r.report.peak_bytes / 1e6:.0f} MB of {r.report.budget_bytes / 1e6:.0f} MB" for r in over
    )
    return Check("budgets", not over, detail or f"{len(history.results)} measured peaks, all within their budget")


def _bytes_kept(history: History, damaged: Sequence[str]) -> Check:
    whole = f"{len(history.results)} deltas and {len(history.adapters)} adapters are what they were"
    return Check("bytes", not damaged, f"damaged: {', '.join(damaged)}" if damaged else whole)


def _improved(history: History, config: Config) -> Check:
    before, after = history.loss(0, FULL), history.loss(config.rounds.count, FULL)
    if before is None or after is None:
        return Check("improved", passed=False, detail="the held-out loss was not measured")
    return Check("improved", after < before, f"held-out loss of the full model {before:.4f} -> {after:.4f}")


def _round(history: History, round_: int, attempt: int, state: str) -> dict[str, Any]:
    accepted = [r for r in history.results if (r.round, r.attempt) == (round_, attempt)]
    results = [_result(r) for r in accepted]
    answers = [_answer(a) for a in history.answers if (a.round, a.attempt) == (round_, attempt)]
    made = state == "aggregated"
    truncation = next((a.truncation for a in history.adapters if made and a.version == round_), None)
    return {
        "round": round_,
        "attempt": attempt,
        "state": state,
        "truncation": truncation,
        "up_bytes": sum(r.size_bytes for r in accepted),
        "tasks": sorted([*results, *answers], key=lambda task: str(task["device"])),
        "decisions": [
            {"device": task.device, "level": task.level, "words": task.words, "state": task.state}
            for task in history.tasks
            if (task.round, task.attempt) == (round_, attempt)
        ],
    }


def _result(row: ResultRow) -> dict[str, Any]:
    """`examples` is what the delta says, which is what was counted; `version` the adapter that it is in, or None."""
    task = {"device": row.device, "level": row.level, "outcome": "done", "size": row.size}
    counted = {"delta_codec": row.codec.value, "version": row.version, "staleness": row.staleness}
    return {**task, **dataclasses.asdict(row.report), "examples": row.examples, **counted}


def _privacy(history: History, config: Config) -> dict[str, Any]:
    """What can be promised to a device whose data might have been other data."""
    examples = config.example_noise is not None
    found = example_privacy.standing(config, history) if examples else standing(config, history.spent)
    return {
        "guarantee": found.epsilon is not None,
        "epsilon": found.epsilon,
        "delta": found.delta,
        "doubts": found.doubts,
        "says": str(found),
        "covers": example_privacy.COVERS if examples else COVERS,
        "rounds": [dataclasses.asdict(row) for row in history.spent],
    }


def _quarantine(history: History, config: Config) -> tuple[Spell, ...]:
    """From which round to which a device got no task."""
    refused = ((answer.device, answer.round) for answer in history.answers if answer.kind == "refused")
    return Quarantine.of(config.checks, refused).spells()


def _answer(row: AnswerRow) -> dict[str, Any]:
    told = "needed_bytes" if row.kind == "declined" else "peak_bytes"
    return {
        "device": row.device,
        "level": row.level,
        "outcome": row.kind,
        "reason": row.reason,
        "budget_bytes": row.budget_bytes,
        told: row.bytes,
        "detail": row.detail,
    }


def _evaluations(history: History, config: Config) -> Iterator[Mapping[str, Any]]:
    for adapter in history.adapters:
        rows = history.evaluated(adapter.version)
        if rows:
            entry: dict[str, Any] = {"version": adapter.version, "emulator_level": config.levels[-1].name}
            for kind in (FULL, EMULATOR):
                row = rows.get(kind)
                entry |= {f"{kind}_loss": row and row.loss, f"{kind}_accuracy": row and row.accuracy}
            yield entry
