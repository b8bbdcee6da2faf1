"""The main job on real input: a coordinator, a broker and five devices, each a process, for three rounds.

    python -m benchmarks.demo --task lm|classify [--policy ppo] [--out DIR] [--rounds 3]

Fetches model and data, writes the configurations that a user would write, starts `fedpeat serve` and five times
`fedpeat-edge run`, and waits. The coordinator shows the progress, the tables and the plot; this script adds the proofs
from outside: the checkpoint is loaded with `peft.PeftModel.from_pretrained` and must give the loss that the
coordinator reported, every blob that a device or the coordinator stored must have the bytes its name promises, and the
smallest device must have declined. The coordinator's own checks follow, each measured peak within its budget among
them. Exit 1 when any of them fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from benchmarks import machine, studies
from coordinator.policy.settings import PolicyName
from coordinator.report import Check
from coordinator.screen import check_line
from edge_sdk.wire.blobs import blob_of_file

FLEET = "demo"
STOP_S = 10.0
BROKER_S = 300.0  # the coordinator starts its broker before it builds, so that devices may wait for it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, prove, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--task", choices=("lm", "classify"), default="lm")
    parser.add_argument("--out", type=pathlib.Path, help="the run's folder, made anew; default: runs/demo-TASK")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--policy", default=PolicyName.LARGEST_THAT_FITS.value, choices=[name.value for name in PolicyName]
    )
    asked = parser.parse_args(arguments)
    console = Console()
    begin = time.monotonic()
    out = (asked.out or pathlib.Path("runs", f"demo-{asked.task}")).resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    console.rule("fetching model and data")
    study = studies.speeches_study() if asked.task == "lm" else studies.reviews_study(out)
    try:
        status = run(study, out, asked.rounds, asked.policy, console)
    except KeyboardInterrupt:
        console.print("interrupted; every process of the demo was ended")
        return 130
    except TimeoutError as error:
        console.print(f"{error}; every process of the demo was ended", style="red")
        return 1
    if status != 0:
        console.print(f"the coordinator ended with {status}; the devices' words are in {out}/*.log", style="red")
        return 1
    checks = prove(study, out)
    for check in checks:
        console.print(check_line(check)[0], highlight=False)
    console.print(f"{time.monotonic() - begin:.0f} s in all; report, plot and checkpoint are in {out}/coordinator")
    return int(not all(check.passed for check in checks))


def run(study: studies.Study, out: pathlib.Path, rounds: int, policy: str, console: Console) -> int:
    """Run coordinator and devices to the end; the coordinator's exit status. Raises TimeoutError without a broker."""
    write_toml(out / "coordinator.toml", coordinator_table(study, out, rounds, policy))
    console.rule("coordinator, broker and devices")
    serve = [sys.executable, "-m", "coordinator.cli", "serve", "--config", str(out / "coordinator.toml")]
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(process(serve, None))
        url = broker_url(out / "coordinator" / "broker.url", coordinator)
        for device in study.devices if url else ():
            path = out / f"{device.name}.toml"
            write_toml(path, device_table(device, out, url))
            edge = [sys.executable, "-m", "edge_sdk.cli", "run", "--config", str(path)]
            stack.enter_context(process(edge, out / f"{device.name}.log"))
        return coordinator.wait()


def coordinator_table(study: studies.Study, out: pathlib.Path, rounds: int, policy: str) -> dict[str, Any]:
    """`coordinator.toml` as tables."""
    return {
        "name": study.name,
        "fleet": FLEET,
        "out": str(out / "coordinator"),
        "model": study.model,
        "adapter": study.adapter,
        "levels": study.levels,
        "rounds": {"count": rounds, "devices": len(study.devices), "quorum": 2, "deadline_s": 240.0, "wait_s": 60.0},
        "training": study.training,
        "evaluation": study.evaluation,
        "policy": {"name": policy},
    }


def device_table(device: studies.Device, out: pathlib.Path, url: str) -> dict[str, Any]:
    """`device.toml` as tables."""
    return {
        "device": device.name,
        "fleet": FLEET,
        "broker": url,
        "budget": device.budget,
        "quota": device.quota,
        "store": str(out / "stores" / device.name),
        "threads": 1,
        "data": device.data,
    }


def write_toml(path: pathlib.Path, table: Mapping[str, Any]) -> None:
    """Write tables as TOML: scalars first, then a section each; lists of tables as [[sections]].

    JSON's strings, numbers, truth values and lists of them are TOML's too. A table in a section is written inline.
    """
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not _is_section(value)]
    for key, value in table.items():
        for section in (value if isinstance(value, (list, tuple)) else [value]) if _is_section(value) else ():
            lines += ["", f"[[{key}]]" if isinstance(value, (list, tuple)) else f"[{key}]"]
            lines += [f"{name} = {_inline(item)}" for name, item in section.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name} = {json.dumps(item)}' for name, item in value.items())}}}"
    return json.dumps(value)


def _is_section(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, Mapping)


@contextlib.contextmanager
def process(command: Sequence[str], log: pathlib.Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, its words in `log` (None: on our terminal), ended when the block is left."""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else None
        started = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT if output else None)
        try:
            yield started
        finally:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
            try:
                started.wait(STOP_S)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def broker_url(path: pathlib.Path, coordinator: subprocess.Popen[bytes]) -> str:
    """Where the coordinator's broker listens; empty when the coordinator ended before it said so.

    Raises TimeoutError when it neither ends nor says so.
    """
    deadline = time.monotonic() + BROKER_S
    while not path.exists() and coordinator.poll() is None:
        if time.monotonic() > deadline:
            msg = f"the coordinator named no broker within {BROKER_S:.0f} s"
            raise TimeoutError(msg)
        time.sleep(0.1)
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def prove(study: studies.Study, out: pathlib.Path) -> list[Check]:
    """The proofs from outside, from what lies on disk, and then the coordinator's own."""
    report = json.loads((out / "coordinator" / "report.json").read_text(encoding="utf-8"))
    tasks = [task for one in report["rounds"] for task in one["tasks"]]
    declined = {task["device"]: task for task in tasks if task["outcome"] == "declined"}
    smallest = study.devices[-1]
    said = declined.get(smallest.name, {"needed_bytes": 0})["needed_bytes"]
    wrong = [str(path) for path in sorted(out.glob("**/blobs/*")) if blob_of_file(path).sha256 != path.name]
    coordinator = out / "coordinator"
    proof = (study.model["dir"], str(coordinator / "checkpoint"), str(coordinator / "held-out"))
    reloaded = machine.measured("benchmarks.reload_checkpoint", *proof)
    difference = abs(reloaded["loss"] - report["evaluations"][-1]["full_loss"])
    return [
        Check(f"{smallest.name} ({smallest.budget}) declined", said > 0, f"it would need {said / 1e6:.0f} MB"),
        Check("stores", not wrong, "; ".join(wrong) or "every stored blob has the bytes its name promises"),
        Check("checkpoint", difference < 1e-3, f"peft loads it: loss {reloaded['loss']:.4f}, {difference:.1e} apart"),
        *(Check(**check) for check in report["checks"]),
    ]


if __name__ == "__main__":
    sys.exit(main())
