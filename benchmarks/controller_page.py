"""What `benchmarks.controller` found, for people: docs/results/controller.md and a plot."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from coordinator.controller.worlds import ROUNDS

ABLATIONS: Final = pathlib.Path(__file__).parent / "results" / "controller-ablations.json"
CONTROLLER, ORACLE = "ppo", "oracle"
FEW, DEVICES, MANY, MOST = 4, 8, 256, 1000  # devices: beside the oracle, in the scenarios, of scale, of one decision
JUDGED: Final = ("stationary", "everything")  # beside the default scenarios: of many devices, and of ablations


def by_scenario(found: Mapping[str, Any], part: str = "scenarios") -> dict[str, dict[str, dict[str, float]]]:
    """Rewards by scenario and policy: mean and half of the interval."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for cell in found[part]:
        rows.setdefault(cell["scenario"], {})[cell["policy"]] = cell["reward"]
    return rows


def page(found: Mapping[str, Any], missed: Sequence[str]) -> str:
    """docs/results/controller.md; `missed` are the claims that do not hold."""
    rewards, card, of = by_scenario(found), found["card"], found["machine"]
    policies = list(next(iter(rewards.values())))
    lines = [
        "# What the controller is worth",
        "",
        "`python -m benchmarks.controller --check` makes this page,",
        "[controller.json](../../benchmarks/results/controller.json) and",
        "[a plot](../../benchmarks/results/controller.png).",
        f"{found['seeds']} seeds of {found['fleets']} fleets of {DEVICES} devices, none of which training saw,",
        f"{ROUNDS} rounds each: the mean reward of a run, with its 95 % interval over seeds. In the last column, the",
        "controller beside the best other.",
        "",
        "| scenario | " + " | ".join(policies) + " | |",
        "| --- |" + " ---: |" * (len(policies) + 1),
    ]
    for scenario, row in rewards.items():
        best = max(reward["mean"] for name, reward in row.items() if name != CONTROLLER)
        cells = [f"{reward['mean']:.3f} ± {reward['half']:.3f}" for reward in row.values()]
        lines.append(f"| {scenario} | " + " | ".join(cells) + f" | {row[CONTROLLER]['mean'] / best - 1:+.0%} |")
    lines += ["", f"## {MANY} devices", "", "The same weights; training saw at most 16.", ""]
    for scenario, row in by_scenario(found, "scale").items():
        told_ = ", ".join(f"{name} {reward['mean']:.3f} ± {reward['half']:.3f}" for name, reward in row.items())
        lines.append(f"- {scenario}: {told_}")
    lines += ["", f"A decision for {MOST} devices takes {found['decide_ms']:.0f} ms on one core.", ""]
    lines += [
        "## FedPEAT's cases and controllers",
        "",
        "Figure 5 of arXiv 2310.17491 in our terms, in the stationary scenario; plain federated learning is given all",
        "the memory that it wants, and is taken to learn as LoRA does.",
        "",
        "| | perplexity | log delay | emulator exchanges | GB | over memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['case']} | {row['perplexity']:.2f} | {row['log_delay']:.2f} | {row['exchanges']:.1f} | "
        f"{row['bytes'] / 1e9:.2f} | {row['violations']:.1f} |"
        for row in found["cases"]
    ]
    lines += parts_worth(ABLATIONS)
    lines += [
        "",
        "## What was wanted and is not so",
        "",
        "Wanted is more than the best other in the stationary scenario, and a tenth more in all others.",
        "",
        *([f"- {complaint}" for complaint in missed] or ["Nothing."]),
        "",
        "The analytic policy knows from the same runs how much a round gains by more people. As measured that is next",
        "to nothing, and one or two quick devices a round, which both choose, close nearly all of the gap: what is",
        "left to be won is the time that they take.",
        "",
        *room_left(found["room"]),
        *by_seed(found["trained"], found["scenarios"]),
        "## From what",
        "",
        f"- Trained in {card['wall_s'] / 60:.0f} minutes, {card['steps']:,} simulated rounds, seed {card['seed']}.",
        f"- Costs: {found['profile']}",
        f"- The learning curve's error on runs that it was not fitted to: {found['curve_error']:.1%} of the gap.",
        f"- Machine: {of['cpu']}, {of['cores']} cores, Python {of['python']}.",
        "",
    ]
    return "\n".join(lines)


def room_left(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The oracle's part of the page."""
    lines = [
        "### How much there is to be had",
        "",
        f"In fleets of {FEW}, the best way that a search found that sees the future: links, heat, memory, lost tasks.",
        "In the last columns, how far the search and the controller are beyond the best other.",
        "",
        "| scenario | ppo | best other | oracle | the oracle's lead | ours |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for scenario, rewards in found.items():
        best = best_other(rewards)
        leads = [rewards[name] / rewards[best] - 1 for name in (ORACLE, CONTROLLER)]
        cells = (f"{rewards[CONTROLLER]:.3f}", f"{best} {rewards[best]:.3f}", f"{rewards[ORACLE]:.3f}")
        lines.append(f"| {scenario} | " + " | ".join((*cells, *(f"{lead:+.0%}" for lead in leads))) + " |")
    return [*lines, ""]


def by_seed(found: Mapping[str, Mapping[str, float]], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The part of training's seeds; nothing where one policy was judged."""
    if not found:
        return []
    kkt = {cell["scenario"]: cell["reward"]["mean"] for cell in cells if cell["policy"] == "kkt"}
    return [
        "### Other training seeds",
        "",
        "Trained like the controller with other seeds, judged like it: the mean over seeds with its 95 % interval,",
        "the least and the most of them.",
        "",
        "| scenario | mean | least | most | kkt |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {scenario} | {row['mean']:.3f} ± {row['half']:.3f} | {row['least']:.3f} | {row['most']:.3f} | "
            f"{kkt[scenario]:.3f} |"
            for scenario, row in found.items()
        ),
        "",
    ]


def parts_worth(path: pathlib.Path) -> list[str]:
    """What `benchmarks.controller_ablations` found; nothing where it was not run."""
    if not path.is_file():
        return []
    ablations = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        f"| {name} | "
        + " | ".join(f"{cell['mean']:.3f} ± {cell['half']:.3f}" for cell in (cells[judged] for judged in JUDGED))
        + " |"
        for name, cells in ablations["found"].items()
    ]
    return [
        "",
        "## What its parts are worth",
        "",
        f"`python -m benchmarks.controller_ablations`: each trained anew for {ablations['request']['steps']:,} rounds,",
        "which is less than the policy above had.",
        f"Training seeds: {ablations['trainings']}; the interval is over them; of one, over seeds of judging.",
        "`no sharing` and `no branching` are the library's own network, which begins from nothing: to be seen beside",
        "`no imitation`. Who leaves its devices at one level needs no store; the bandit, which tries levels, does.",
        "`seen before` takes the best of 16 joint decisions in every round, by what the round then earns: what devices",
        "could gain that are decided in the sight of each other.",
        "",
        f"| | {' | '.join(JUDGED)} |",
        "| --- |" + " ---: |" * len(JUDGED),
        *rows,
    ]


def plot(found: Mapping[str, Any], path: pathlib.Path) -> None:
    """Rewards by scenario, and the way there in training."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    rewards = by_scenario(found)
    policies = list(next(iter(rewards.values())))
    figure, axes = plt.subplots(figsize=(12, 4.5), layout="constrained")
    width = 0.8 / len(policies)
    for k, name in enumerate(policies):
        places = [i + k * width for i in range(len(rewards))]
        heights = [row[name]["mean"] for row in rewards.values()]
        errors = [min(row[name]["half"], 1.0) for row in rewards.values()]
        axes.bar(places, heights, width, yerr=errors, label=name, error_kw={"linewidth": 0.6})
    axes.set_xticks([i + 0.4 for i in range(len(rewards))], list(rewards))
    axes.set_ylabel("reward of a run")
    axes.legend(ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def best_other(rewards: Mapping[str, float]) -> str:
    """The best of those that the controller is beside."""
    return max(rewards.keys() - {CONTROLLER, ORACLE}, key=lambda name: rewards[name])
