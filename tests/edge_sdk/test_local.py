"""The library trains on local data within its budget, without a coordinator and without a trace.

Training happens in processes of their own: it changes how its process allocates memory, and is bounded by its peak.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

import edge_sdk
from edge_sdk.config import DataConfig, DataKind
from edge_sdk.data import map_token_folder, write_image_folder, write_token_folder
from edge_sdk.errors import ArtifactError, ConfigError, DataError, OverBudget
from edge_sdk.local import evaluate, open_artifact, open_data, train
from edge_sdk.prepare import prepare
from edge_sdk.sources import IdxImages, TextFolder
from edge_sdk.wire.tensors import read_tensors, write_tensors

GIGABYTE = 10**9
TEXT = "The state of the union is strong, and what the device knows stays on the device.\n"


def python(program: str, *arguments: object, cwd: pathlib.Path, **environment: str) -> Any:
    """Run a program in a fresh interpreter in the folder `cwd`; the last line that it prints is JSON."""
    checkout = os.path.dirname(os.path.dirname(edge_sdk.__file__))  # noqa: PTH120 - as PYTHONPATH wants it
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=kept | {"PYTHONPATH": checkout} | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


TRAIN = """
    import json, sys
    import edge_sdk
    from edge_sdk.memory import read_memory
    artifact = edge_sdk.open_artifact(sys.argv[1])
    training = edge_sdk.train(artifact, sys.argv[2], steps=int(sys.argv[3]), budget_bytes=int(sys.argv[4]),
                              batch=4, tokens=16, learning_rate=1e-2, threads=1)
    losses = [report.loss for report in training]
    training.save_adapter("adapter.safetensors")
    print(json.dumps({"losses": losses, "peak_bytes": read_memory().peak_bytes, "plan": training.plan.peak_bytes}))
"""


def test_training_on_text_lowers_the_loss(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """From text to an adapter with a lower loss, which has the full model's names and shapes."""
    pytest.importorskip("tokenizers")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT * 20)
    found = python(TRAIN, tiny_artifact, "texts", 10, GIGABYTE, cwd=tmp_path)
    assert len(found["losses"]) == 10
    assert found["losses"][-1] < found["losses"][0]
    before = evaluate(tiny_artifact, tmp_path / "texts", tokens=16)
    after = evaluate(tiny_artifact, tmp_path / "texts", tokens=16, adapter=tmp_path / "adapter.safetensors")
    assert after.loss < before.loss
    assert (after.rows, after.accuracy) == (before.rows, None)
    artifact = open_artifact(tiny_artifact)
    initial = read_tensors(artifact.path(artifact.manifest.adapter.initial))
    saved = read_tensors(tmp_path / "adapter.safetensors")
    assert {name: array.shape for name, array in saved.items()} == {n: a.shape for n, a in initial.items()}
    assert any(not np.array_equal(saved[name], initial[name]) for name in initial)


def test_training_repeats_bit_for_bit(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The same data and seed on one machine with as many threads give the same losses and the same adapter."""
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        found = python(TRAIN, tiny_artifact, tokens, 4, GIGABYTE, cwd=tmp_path / name)
        runs.append((found["losses"], (tmp_path / name / "adapter.safetensors").read_bytes()))
    assert runs[0] == runs[1]


def test_training_stays_within_its_budget(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A budget a little above what the plan needs is enough, and the measured peak lies below it."""
    needed = python(TRAIN, tiny_artifact, tokens, 1, GIGABYTE, cwd=tmp_path)["plan"]
    budget = round(1.1 * needed)
    found = python(TRAIN, tiny_artifact, tokens, 6, budget, cwd=tmp_path)
    assert 2e7 < found["peak_bytes"] <= budget


def test_a_budget_that_nothing_fits_says_what_would(tiny_artifact: pathlib.Path, tokens: pathlib.Path) -> None:
    """The leanest plan's need is in the error, before anything is loaded or read."""
    artifact = open_artifact(tiny_artifact)
    with pytest.raises(OverBudget, match="MB needed by the leanest plan, the budget is 20 MB") as caught:
        train(artifact, tokens, budget_bytes=20_000_000, steps=1, tokens=16)
    assert caught.value.measured_bytes > 20_000_000
    assert caught.value.budget_bytes == 20_000_000


def test_what_the_process_holds_counts(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A caller that holds 200 MB has that much less for training."""
    program = """
        import json, sys
        import numpy
        import edge_sdk
        from edge_sdk.errors import OverBudget
        held = numpy.ones(25_000_000)
        artifact = edge_sdk.open_artifact(sys.argv[1])
        try:
            edge_sdk.train(artifact, sys.argv[2], budget_bytes=200_000_000, steps=1, tokens=16)
        except OverBudget as error:
            print(json.dumps(error.measured_bytes))
    """
    assert python(program, tiny_artifact, tokens, cwd=tmp_path) > 250_000_000


def test_training_can_stop_and_go_on(tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Who iterates may stop; what was saved is where the next training begins."""
    program = """
        import json, sys
        import numpy
        import edge_sdk
        artifact, data = edge_sdk.open_artifact(sys.argv[1]), sys.argv[2]
        shape = {"budget_bytes": 10**9, "batch": 8, "tokens": 16, "threads": 1}
        training = edge_sdk.train(artifact, data, steps=100, learning_rate=1e-2, **shape)
        for report in training:
            if report.step == 5:
                break
        training.save_adapter("half.safetensors")
        then = edge_sdk.train(artifact, data, steps=1, adapter="half.safetensors", **shape)
        assert all(numpy.array_equal(then.adapter[name], array) for name, array in training.adapter.items())
        print(json.dumps([report.loss, next(iter(then)).loss, next(training).loss]))
    """
    fifth, again, sixth = python(program, tiny_artifact, tokens, cwd=tmp_path)
    assert again == pytest.approx(sixth, rel=1e-5)  # all rows in one batch: their order alone differs
    assert sixth < fifth


def all_below(folder: pathlib.Path) -> list[str]:
    """Everything in a folder, folders too, by name."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_nothing_is_left_behind(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path, kind: str
) -> None:
    """Importing and training write the adapter where it was asked for, and nothing else anywhere: no telemetry's
    device id, no cache, no temporary file.
    """
    data = tokens
    if kind == "text":
        pytest.importorskip("tokenizers")
        data = tmp_path / "texts"
        data.mkdir()
        (data / "a.txt").write_text(TEXT * 5)
    homes = {name: tmp_path / "homes" / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    homes |= {name: tmp_path / "homes" / name for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")}
    for home in (*homes.values(), tmp_path / "work"):
        home.mkdir(parents=True)
    store_before = all_below(tiny_artifact)
    environment = {name: str(home) for name, home in homes.items()}
    python(TRAIN, tiny_artifact, data, 2, GIGABYTE, cwd=tmp_path / "work", **environment)
    assert all_below(tmp_path / "homes") == sorted(homes)
    assert all_below(tmp_path / "work") == ["adapter.safetensors"]
    assert all_below(tiny_artifact) == store_before


def test_evaluation_takes_as_many_rows_as_asked(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Each row of 16 tokens makes 15 predictions; the mean over all is the mean of the halves', which differ."""
    artifact = open_artifact(tiny_artifact)
    found = evaluate(artifact, tokens, rows=3)
    assert (found.rows, found.predictions) == (3, 45)
    everything = evaluate(artifact, tokens)
    write_token_folder(tmp_path / "rest", map_token_folder(tokens).ids[4:], np.full(4, 16))
    halves = [evaluate(artifact, tokens, rows=4), evaluate(artifact, tmp_path / "rest")]
    assert [half.rows for half in (*halves, everything)] == [4, 4, 8]
    assert halves[0].loss != pytest.approx(halves[1].loss, rel=1e-4)
    assert (halves[0].loss + halves[1].loss) / 2 == pytest.approx(everything.loss)


def test_text_and_its_token_folder_are_the_same_data(tiny_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A folder of text, a CSV with the same text, and what `prepare` makes of it give one loss."""
    pytest.importorskip("tokenizers")
    artifact = open_artifact(tiny_artifact)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT.strip())
    (tmp_path / "table.csv").write_text(f'"words"\n"{TEXT.strip()}"\n')
    tokenizer = artifact.path(artifact.manifest.tokenizer)
    prepare(TextFolder(tmp_path / "texts"), tokenizer, tokens=16, out=tmp_path / "tokens")
    table = DataConfig(kind=DataKind.CSV, path=tmp_path / "table.csv", text_column="words")
    kinds = (tmp_path / "texts", str(tmp_path / "tokens"), table)
    losses = {evaluate(artifact, data, tokens=16).loss for data in kinds}
    assert len(losses) == 1


def test_images_are_data_like_any_other(tiny_vision: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The same squares as arrays, in MNIST's format and prepared give one loss, at any `tokens`; and training on them
    lowers it, with a peak as it was promised, or nearly.
    """
    labels = np.arange(12) % 3
    pixels = np.random.default_rng(0).integers(0, 80, (12, 9, 9)) + 80 * labels[:, None, None]
    write_image_folder(tmp_path / "arrays", pixels[:, None], labels)
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
        (tmp_path / f"t-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    artifact = open_artifact(tiny_vision)
    model = artifact.manifest.model
    idx = tmp_path / "t-images-idx3-ubyte"
    out, tokens = tmp_path / "prepared", model.max_tokens
    prepare(IdxImages(idx), None, tokens=tokens, out=out, labels=model.labels, image=model.image)
    found = [evaluate(artifact, data, tokens=7) for data in (tmp_path / "arrays", idx, out)]
    assert len({one.loss for one in found}) == 1
    assert (found[0].rows, found[0].predictions) == (12, 12)
    assert found[0].accuracy is not None
    trained = python(TRAIN, tiny_vision, tmp_path / "arrays", 12, 400 * 10**6, cwd=tmp_path)
    assert trained["peak_bytes"] <= 1.1 * trained["plan"] <= 400 * 10**6
    after = evaluate(artifact, tmp_path / "arrays", adapter=tmp_path / "adapter.safetensors")
    assert after.loss < found[0].loss


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"data": "absent"}, DataError, "absent is not there"),
        ({"data": "notes.md"}, DataError, r"notes\.md is no folder, and no \.csv or \.jsonl file"),
        ({"data": "empty"}, DataError, r"empty has no \.txt file"),
        ({"data": "short"}, DataError, "has no usable row"),
        ({"steps": 0}, ConfigError, "steps is 0; it must be at least 1"),
        ({"batch": -1}, ConfigError, "batch is -1"),
        ({"tokens": 0}, ConfigError, "tokens is 0"),
        ({"tokens": 10**6}, ConfigError, "tokens is 1000000; this model reads at most 256"),
        ({"adapter": "wrong.safetensors"}, ArtifactError, r"adapter tensor \S+ must be float32"),
    ],
)
def test_wrong_input_is_one_line(
    tiny_artifact: pathlib.Path, tmp_path: pathlib.Path, change: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    """What cannot be is refused before training begins."""
    (tmp_path / "notes.md").touch()
    (tmp_path / "empty").mkdir()
    write_token_folder(tmp_path / "short", np.ones((2, 4)), np.ones(2))
    write_token_folder(tmp_path / "good", np.ones((2, 4)), np.full(2, 4))
    write_tensors(tmp_path / "wrong.safetensors", {"a": np.zeros(1, np.float32)})
    given = {"data": "good", "steps": 1, **change}
    paths = {name: tmp_path / given.pop(name) for name in ("data", "adapter") if name in given}
    with pytest.raises(error, match=complaint) as caught:
        train(open_artifact(tiny_artifact), budget_bytes=10**11, **paths, **given)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_takes_tokens_alone(
    tiny_artifact: pathlib.Path, tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Its token arrays are opened; text is refused in one line."""
    from dataclasses import replace

    artifact = open_artifact(tiny_artifact)
    bare = replace(artifact, manifest=replace(artifact.manifest, tokenizer=""))
    assert len(open_data(bare, tokens, 16)) == 8
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(DataError, match="came without a tokenizer: its data must be token arrays"):
        open_data(bare, tmp_path, 16)


def test_what_is_exported_is_there() -> None:
    """Every name of `__all__` can be had, is listed, and is what its own module has; other names are errors."""
    assert set(edge_sdk.__all__) <= set(dir(edge_sdk))
    assert edge_sdk.__all__ == sorted(edge_sdk.__all__, key=lambda name: (not name[0].isupper(), name))
    for name in edge_sdk.__all__:
        assert getattr(edge_sdk, name).__name__ == name
    assert edge_sdk.train is train
    with pytest.raises(AttributeError, match="module 'edge_sdk' has no attribute 'trian'"):
        _ = edge_sdk.trian


@pytest.mark.parametrize("statement", ["import edge_sdk", "import edge_sdk.wire", "from edge_sdk import parse_size"])
def test_importing_loads_no_runtime(tmp_path: pathlib.Path, statement: str) -> None:
    """Only who trains or evaluates loads onnxruntime, and nobody a tokenizer."""
    loaded = set(python(f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))", cwd=tmp_path))
    assert "edge_sdk" in loaded
    assert not loaded & {"onnxruntime", "tokenizers", "psutil"}


def test_the_runtime_is_quiet_before_it_is_imported(tmp_path: pathlib.Path) -> None:
    """Whoever loads it through us has telemetry off, whatever the environment said."""
    program = """
        import json, os
        import edge_sdk
        edge_sdk.train
        print(json.dumps(os.environ["ORT_DISABLE_TELEMETRY"]))
    """
    assert python(program, cwd=tmp_path, ORT_DISABLE_TELEMETRY="0") == "1"
