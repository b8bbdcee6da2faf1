"""`fedpeat-edge` does what it says, in processes as users start it, with statuses that scripts can rely on."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from edge_sdk.data import map_token_folder, write_token_folder
from edge_sdk.engine.artifact import open_artifact
from edge_sdk.wire.tensors import read_tensors, write_tensors

TRAIN = ("--data", "TOKENS", "--budget", "1GB", "--steps", "1")


def edge(*words: object, cwd: pathlib.Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "edge_sdk.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=cwd)


def test_help_names_every_command() -> None:
    """`--help` is all a newcomer needs to begin."""
    done = edge("--help")
    assert done.returncode == 0
    for command in ("run", "doctor", "key", "probe", "plan", "evaluate", "prepare", "train"):
        assert f"\n    {command} " in done.stdout


def test_train_then_evaluate(tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """An adapter trained at the command line has a lower loss there, too."""
    out = tmp_path / "adapter.safetensors"
    shape = ("--tokens", 16, "--batch", 4, "--threads", 1)
    words = ("--data", tokens, "--budget", "1GB", "--steps", 8, "--learning-rate", 1e-2, "--out", out)
    done = edge("train", tiny_artifact, *shape, *words)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert lines[-1].startswith("step 8 of 8: loss ")
    assert read_tensors(out)
    before, after = (
        json.loads(edge("evaluate", tiny_artifact, "--data", tokens, *adapter).stdout)
        for adapter in ((), ("--adapter", out))
    )
    assert after["loss"] < before["loss"]
    assert (before["rows"], before["predictions"], before["accuracy"]) == (8, 120, None)


def test_other_programs_read_json(tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A line a step and one of the plan and its peak; the same seed makes the same steps; plans, leanest first."""
    shape = ("--tokens", 16, "--threads", 1, "--budget", "1GB", "--json")
    words = ("--data", tokens, "--steps", 2, "--out", tmp_path / "adapter.safetensors")
    losses = []
    for seed in (1, 1, 2):
        done = edge("train", tiny_artifact, *shape, *words, "--seed", seed)
        assert (done.returncode, done.stderr) == (0, "")
        *steps, last = map(json.loads, done.stdout.splitlines())
        assert [step["step"] for step in steps] == [1, 2]
        assert 0 < last["peak_bytes"] <= last["budget_bytes"] == 10**9
        losses.append([step["loss"] for step in steps])
    assert losses[0] == losses[1] != losses[2]
    done = edge("plan", tiny_artifact, *shape, "--in-memory")
    plans = json.loads(done.stdout)["plans"]
    assert last["plan"]["micro_batch"] == 1
    assert [plan["peak_bytes"] for plan in plans] == sorted(plan["peak_bytes"] for plan in plans)


def test_prepare_makes_a_token_folder(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """From token arrays on a bare install: rows of another length, and one JSON line."""
    words = ("--kind", "token-arrays", "--path", tokens, "--tokens", 8, "--rows", 5, "--out", "out")
    done = edge("prepare", tiny_artifact, *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert (said["rows"], said["tokens"], said["cached"]) == (5, 40, False)
    assert map_token_folder(tmp_path / "out").ids.shape == (5, 8)


def test_prepare_reads_text(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """From text, with the artifact's own tokenizer."""
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text("The state of the union is strong.\n" * 10)
    words = ("--kind", "text-folder", "--path", tmp_path, "--tokens", 8, "--out", tmp_path / "out")
    done = edge("prepare", tiny_artifact, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == len(map_token_folder(tmp_path / "out"))


def test_plan_shows_the_choice(tiny_artifact: pathlib.Path) -> None:
    """The chosen plan is marked; where nothing fits, status 1 and what would be needed."""
    done = edge("plan", tiny_artifact, "--budget", "1GB", "--batch", 4)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"storage \d+ MB/s, \d+\.\d GB of page cache\n", done.stdout)
    assert sum(line.startswith("->") for line in done.stdout.splitlines()) == 1
    done = edge("plan", tiny_artifact, "--budget", "5MB", "--in-memory")
    assert done.returncode == 1
    assert "nothing fits 5 MB; the leanest plan needs" in done.stdout


def test_plan_shows_integers_to_who_allows_them(tiny_classifier: pathlib.Path) -> None:
    """With --integers the table has plans of 8 bits back as well, and says how far off their gradients are."""
    for words, shown in ((), False), (("--integers",), True):
        done = edge("plan", tiny_classifier, "--budget", "1GB", "--tokens", 16, *words)
        assert (done.returncode, done.stderr) == (0, "")
        _, heading, *lines = done.stdout.splitlines()
        column = heading.index("back bits") + len("back bits")
        back_bits = {line[:column].split()[-1] for line in lines if "->" in line or line.startswith("  ")}
        assert back_bits == ({"32", "8"} if shown else {"32"})
        assert ("with 8 bits back, gradients are off by 0." in lines[-1]) == shown


def test_probe_measures(tiny_artifact: pathlib.Path) -> None:
    """Peak, step time and loss of real steps in a fresh process, as one line of JSON."""
    done = edge("probe", tiny_artifact, "--tokens", 16, "--steps", 2, "--threads", 1)
    assert (done.returncode, done.stderr[:8]) == (0, "storage ")
    found = json.loads(done.stdout)
    assert found["peak_bytes"] > 2e7
    assert found["step_ms"] > 0
    assert found["threads"] == 1
    assert {cost["graph"] for cost in found["costs"]} >= {"process", "training", "pages", "block.backward.onnx"}


def test_doctor_finds_no_fault_here() -> None:
    """Without a configuration it checks this machine alone."""
    done = edge("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "FAIL" not in done.stdout


def test_a_budget_that_nothing_fits_is_a_failure(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Status 1, one line with what would be needed, and no adapter."""
    words = ("--data", tokens, "--budget", "5MB", "--steps", 1, "--out", tmp_path / "adapter.safetensors")
    done = edge("train", tiny_artifact, *words)
    assert done.returncode == 1
    assert "needed by the leanest plan, the budget is 5 MB" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "adapter.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("evaluate", "ARTIFACT", "--data", "absent"), "absent is not there"),
        (("evaluate", "absent", "--data", "TOKENS"), "absent is no artifact"),
        (("evaluate", "DAMAGED", "--data", "TOKENS"), "a.manifest is no manifest, or damaged; export it again"),
        (("evaluate", "ARTIFACT", "--level", "int3", "--data", "TOKENS"), "has no level 'int3'; it has fp32"),
        (("plan", "ARTIFACT", "--budget", "much"), "'much' is no size; write it like 256MB"),
        (("doctor", "--config", "absent.toml"), "absent.toml: cannot be read"),
        (("run", "--config", "absent.toml"), "absent.toml: cannot be read"),
        (("prepare", "ARTIFACT", "--kind", "csv", "--path", "absent.csv", "--out", "out"), "cannot read absent.csv"),
        (("prepare", "ARTIFACT", "--kind", "csv", "--path", "TOKENS", "--out", ".."), "and is no folder of rows"),
        (
            ("evaluate", "ARTIFACT", "--data", "TOKENS", "--adapter", "absent.st"),
            "absent.st: No such file or directory",
        ),
        (("plan", "ARTIFACT", "--budget", "1GB", "--tokens", "9999"), "tokens is 9999; this model reads at most"),
        (("probe", "ARTIFACT", "--tokens", "9999"), "tokens is 9999; this model reads at most"),
        (("train", "ARTIFACT", *TRAIN, "--out", "."), ". is a folder; name a file"),
        (("train", "ARTIFACT", *TRAIN, "--out", "/proc/version/x"), "/proc/version is no folder"),
        (
            ("train", "ARTIFACT", *TRAIN, "--out", "a", "--learning-rate", "nan"),
            "learning_rate is nan; it must be from",
        ),
    ],
)
def test_wrong_input_is_one_line(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path, words: tuple[str, ...], complaint: str
) -> None:
    """Status 2, one line that says what is wrong, and nothing made."""
    (tmp_path / "work").mkdir()
    (tmp_path / "a.manifest").write_bytes(b"damaged")
    names = {"ARTIFACT": str(tiny_artifact), "TOKENS": str(tokens), "DAMAGED": str(tmp_path / "a.manifest")}
    done = edge(*(names.get(word, word) for word in words), cwd=tmp_path / "work")
    assert done.returncode == 2
    assert done.stderr.startswith("fedpeat-edge: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "work").iterdir())


def test_terminated_leaves_nothing(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """SIGTERM in the middle of `prepare` ends it with status 143, and what was half-written is gone."""
    pytest.importorskip("tokenizers")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("The state of the union is strong.\n" * 300_000)
    words = ("--kind", "text-folder", "--path", tmp_path / "texts", "--out", tmp_path / "out")
    command = [sys.executable, "-m", "edge_sdk.cli", "prepare", tiny_artifact, *words]
    process = subprocess.Popen([str(word) for word in command])
    making = tmp_path / ".out.making"
    deadline_s = time.monotonic() + 60
    while not making.exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert making.exists()
    process.terminate()
    assert process.wait(30) == 143
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_an_adapter_that_is_not_finite_is_refused(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """With the tensor's name, instead of a loss that is no number."""
    adapter = open_artifact(tiny_artifact).initial_adapter()
    name = next(iter(adapter))
    path = tmp_path / "adapter.safetensors"
    write_tensors(path, {**adapter, name: np.full_like(adapter[name], np.nan)})
    done = edge("evaluate", tiny_artifact, "--data", tokens, "--adapter", path)
    assert done.returncode == 2
    assert done.stderr == f"fedpeat-edge: adapter tensor {name} has values that are not finite\n"


def test_rows_that_the_model_cannot_read_are_refused(tiny_classifier: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A row beyond the model's positions is said; nothing else would stop it but the runtime, in thirty lines."""
    write_token_folder(tmp_path / "wide", np.full((2, 600), 7), np.array([5, 600]), np.array([0, 1]))
    done = edge("evaluate", tiny_classifier, "--data", tmp_path / "wide")
    assert done.returncode == 2
    assert "wide has a row of 600 tokens; this model reads at most" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "name", "content", "complaint"),
    [
        ("csv", "a.csv", b"a,b\n1,2\n", "has no column text; its first line has a, b"),
        ("csv", "a.csv", b"text\n", "holds nothing to learn from"),
        ("text-folder", ".", b"", "holds nothing to learn from"),
        ("text-folder", ".", b"caf\xe9", "is not UTF-8 text (byte 0xe9)"),
        ("csv", ".", b"", "Is a directory"),
    ],
)
def test_run_looks_at_the_data_first(
    tmp_path: pathlib.Path, kind: str, name: str, content: bytes, complaint: str
) -> None:
    """What is wrong with the beginning of the private data is said at once, not in the first round."""
    data = tmp_path / "data"
    data.mkdir()
    (data / ("a.txt" if name == "." else name)).write_bytes(content)
    config = tmp_path / "device.toml"
    config.write_text(
        'device = "d"\nfleet = "f"\nbroker = "mqtt://127.0.0.1:9"\nbudget = "256MB"\nstore = "store"\n'
        f'[data]\nkind = "{kind}"\npath = "data/{name}"\n'
    )
    done = edge("run", "--config", config)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()
