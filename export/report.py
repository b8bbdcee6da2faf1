"""What there is to say, as rich tables: families; an artifact's levels and sizes, costs, gradient errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from edge_sdk.wire.manifest import AdapterSpec, LevelSpec, Manifest
from export.folder import size_bytes

if TYPE_CHECKING:
    from export.families import Family
    from export.parity import Parity

MB = 1e6


def summary(manifest: Manifest) -> str:
    """What all levels of an artifact share, in three lines."""
    model = manifest.model
    labels = f", labels {', '.join(model.labels)}" if model.labels else ""
    text = "with its tokenizer" if manifest.tokenizer else "no tokenizer: devices need token arrays as data"
    vocabulary, rows = f", vocabulary {model.vocabulary}", f"at most {model.max_tokens} tokens{labels}, {text}"
    if model.image is not None:
        vocabulary, rows = "", f"images of {model.image} bytes, {model.max_tokens} tokens each{labels}"
    return (
        f"{model.family}, {model.task.value}: {model.layers} layers of width {model.width}{vocabulary}\n"
        f"{rows}\n"
        f"{_adapter_line(manifest.adapter)}"
    )


def _adapter_line(adapter: AdapterSpec) -> str:
    """`lora of rank 8, alpha 16, on q_proj, v_proj`, with what its kind takes."""
    factors = f" of rank {adapter.rank}, alpha {adapter.alpha:g}" if adapter.rank else ""
    targets = f", on {', '.join(adapter.targets)}" if adapter.targets else ""
    sizes = {"the first": adapter.first, "the last": adapter.last, "of length": adapter.length}
    return f"{adapter.kind}{factors}{targets}{''.join(f', {what} {size}' for what, size in sizes.items() if size)}"


def family_table(families: Sequence[Family]) -> Table:
    """One row per family."""
    table = Table(title="Model families", title_justify="left")
    for heading in ("family", "model types", "tasks", "adapts"):
        table.add_column(heading, no_wrap=heading != "model types")
    for family in families:
        tasks = "\n".join(task.value for task in family.tasks)
        table.add_row(family.name, ", ".join(family.model_types), tasks, ", ".join(family.targets))
    return table


def level_table(manifests: Mapping[str, Manifest]) -> Table:
    """One row per level; bytes that other levels of the folder have too are counted as shared. The last column is the
    manifest's `integers_error`.
    """
    users = Counter(blob for manifest in manifests.values() for blob in set(manifest.files.values()))
    table = Table(title="Emulator levels", title_justify="left")
    table.add_column("level", overflow="fold")
    for heading in ("bits", "layers", "train", "files", "MB", "shared", "needs MB", "off in integers"):
        table.add_column(heading, justify="right")
    for name, manifest in manifests.items():
        blobs = set(manifest.files.values())
        shared = {blob for blob in blobs if users[blob] > 1}
        table.add_row(
            name,
            _bits(manifest.level),
            f"{len(manifest.level.layers)} of {manifest.model.layers}{_cut(manifest.level)}",
            str(len(manifest.level.trained_layers)),
            str(len(manifest.files)),
            f"{size_bytes(blobs) / MB:.1f}",
            f"{size_bytes(shared) / MB:.1f}",
            f"{manifest.needs_bytes / MB:.0f}" if manifest.needs_bytes else "not measured",
            f"{manifest.integers_error:.1%}" if manifest.integers_error else "-",
        )
    table.caption = f"{size_bytes(set(users)) / MB:.1f} MB on disk in {len(users)} files"
    return table


def _bits(level: LevelSpec) -> str:
    """The level's bits, of layers as well as of what is beside them: `8`, `8, 4`."""
    return ", ".join(str(bits) for bits in sorted({level.bits, *level.layer_bits}, reverse=True))


def _cut(level: LevelSpec) -> str:
    """What these layers lost, and how they were fitted: `, ffn 50%, svd 64, refit`, `, 100 steps`."""
    surgery, refit = level.surgery, level.refit
    ffn = f", ffn {surgery.ffn:.0%}" if surgery.ffn < 1 else ""
    svd = f", svd {surgery.svd_rank}" if surgery.svd else ""
    steps = f", {refit.steps} steps" if refit is not None and refit.steps else ""
    return ffn + svd + (", refit" if refit is not None else "") + steps


def cost_table(manifest: Manifest) -> Table:
    """One row per measured cost."""
    table = Table(title=f"Costs of {manifest.level.name}, as measured at export", title_justify="left")
    for heading in ("graph", "rows x tokens", "MB", "ms"):
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    for cost in manifest.costs:
        sizes = (f"{cost.memory_bytes / MB:.1f}", f"{cost.time_ms:.1f}")
        table.add_row(cost.graph, f"{cost.batch} x {cost.tokens}", *sizes)
    return table


def parity_table(results: Sequence[Parity]) -> Table:
    """One row per level and trained input: the largest relative error over all segments. One more where a level has
    graphs in integers: the norm of what they make wrong, over that of the exact gradient.
    """
    from export.parity import BOUND, INTEGERS_BOUND

    allowed = f"{BOUND:.0e}, and {INTEGERS_BOUND:.0e} in integers"
    table = Table(title=f"Largest relative error against torch, allowed {allowed}", title_justify="left")
    for heading in ("level", "tensor", "error"):
        table.add_column(heading, justify="right" if heading == "error" else "left")
    for result in results:
        for name, error in result.errors.items():
            table.add_row(result.level, name, f"{error:.1e}", style=None if error <= result.allowed else "red")
        if result.in_integers:
            style = None if result.in_integers <= INTEGERS_BOUND else "red"
            table.add_row(result.level, "whole gradient, in integers", f"{result.in_integers:.1e}", style=style)
    return table


def verdict(results: Sequence[Parity]) -> str:
    """One line: the worst error, where it is, and whether it is within the bound."""
    from export.parity import badness

    worst = max(results, key=lambda result: badness(result.worst))
    within = "within" if worst.holds else "ABOVE"
    return f"largest error {worst.worst:.1e}, of level {worst.level}: {within} {worst.allowed:.0e}"
