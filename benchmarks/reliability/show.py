"""The scoreboard as a page, and what is amiss in it."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.reliability.power_scenes import CONTROL_NAME
from benchmarks.reliability.promises import STATES

Board = dict[str, Any]
SECTIONS = ("kills", "faults", "stragglers", "inputs", "power", "control")
COUNTS = ("offered", "receipted", "committed", "aggregated", "lost", "duplicated", "blobs", "wrong_blobs")


def read(path: pathlib.Path) -> Board:
    """A scoreboard that was written before; empty where there is none."""
    if not path.is_file():
        return {}
    found: Board = json.loads(path.read_text(encoding="utf-8"))
    return found


def results(board: Board) -> Counter[str]:
    """What all fleets together offered, receipted and aggregated."""
    runs = [*board.get("kills", {}).get("cases", ()), *board.get("faults", ())]
    total = Counter[str](dict.fromkeys(COUNTS, 0))
    for run in runs:
        total.update({name: run["tally"][name] for name in COUNTS})
    return total


def amiss(board: Board) -> list[str]:
    """What did not hold, in a line each."""
    return list(_amiss(board))


def _amiss(board: Board) -> Iterator[str]:
    for case in board.get("kills", {}).get("cases", ()):
        if not case["passed"]:
            why = "; ".join(case["tally"]["complaints"]) or "the label was never passed"
            yield f"kill of {case['process']} at {case['label']}: {why}"
    for fault in board.get("faults", ()):
        if not fault["passed"] and not fault["lacks"]:
            why = "; ".join(fault["tally"]["complaints"]) or "nothing was injected"
            yield f"{fault['kind']}, {fault['broker']}: {why}"
    total = results(board)
    for name in ("lost", "duplicated", "wrong_blobs"):
        if total[name]:
            yield f"{total[name]} {name}"
    for how, outcome in board.get("inputs", {}).items():
        if not outcome["passed"]:
            found = f"{outcome['accepted']} accepted, {outcome['crashed']} crashed, {outcome['hung']} hung"
            yield f"bad inputs, {how}: {found}"
    for cuts in board.get("power", ()):
        if not cuts["passed"]:
            what = "; ".join(f"{count} x {lacks}" for lacks, count in cuts["broken"].items())
            yield f"power cuts, {cuts['scene']}: {what or 'the control did not fail: they prove nothing'}"
    yield from _controls_that_hold(board)


def _controls_that_hold(board: Board) -> Iterator[str]:
    if "control" in board and not board["control"]["bites"]:
        yield "the control did not fail: the faults prove nothing"
    if "stragglers" in board and not board["stragglers"]["bites"]:
        yield "plain rounds were not the slowest beside a slow device: the other courses prove nothing"


def page(board: Board) -> str:
    """Markdown."""
    machine = board["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    part = " --quick" if board["quick"] else ""
    lines = [
        "# Reliability: the scoreboard",
        "",
        f"`python -m benchmarks.reliability{part}`, seed {board['seed']}. {where}; {versions}.",
        "[docs/promises.md](../promises.md) says what each of it is to prove.",
        "",
        *_table(board),
        *_faults(board),
        *_stragglers(board),
        *_control(board),
        *_promises(board),
        *_problems(board),
    ]
    return "\n".join(lines) + "\n"


def _table(board: Board) -> Iterator[str]:
    yield from ("| | measured | must be |", "|---|---|---|")
    if kills := board.get("kills"):
        cases = kills["cases"]
        passed = sum(case["passed"] for case in cases)
        of = kills["of"]
        yield f"| kill points swept: process and label | {passed} of {len(cases)} survived | {of} of {of} |"
        longest = max(case["wall_s"] for case in cases)
        median = sorted(case["wall_s"] for case in cases)[len(cases) // 2]
        yield f"| a fleet from start to end, median and longest | {median:.1f} s, {longest:.1f} s | |"
    if faults := board.get("faults"):
        tried = [fault for fault in faults if not fault["lacks"]]
        survived = sum(fault["passed"] for fault in tried)
        yield f"| kinds of fault survived, on each broker | {survived} of {len(tried)} tried | all |"
    total = results(board)
    if total["offered"]:
        yield f"| results offered, receipted | {total['offered']}, {total['receipted']} | equal |"
        yield f"| results committed, aggregated | {total['committed']}, {total['aggregated']} | see below |"
        yield f"| results lost, counted twice | {total['lost']}, {total['duplicated']} | 0, 0 |"
        yield f"| blobs stored, with other bytes than promised | {total['blobs']}, {total['wrong_blobs']} | 0 of them |"
    for how, words in (("written", "bad inputs written by hand"), ("made", "bad inputs made by mutation")):
        if inputs := board.get("inputs", {}).get(how):
            found = f"{inputs['tried']:,} tried, {inputs['refused']:,} refused, {inputs['sound']:,} true after all"
            yield f"| {words} | {found} | |"
            yield (
                f"| accepted wrongly, crashed, hung | {inputs['accepted']}, {inputs['crashed']}, {inputs['hung']} "
                "| 0, 0, 0 |"
            )
            if how == "made":
                grown = inputs["grown_bytes"] / 1e6
                yield f"| slowest input; memory beyond the start | {inputs['slowest_s']:.2f} s; {grown:.1f} MB | |"
    yield from _power(board)
    yield ""
    if total["offered"]:
        yield (
            "Every offer gets an answer, and every accepted result is committed once. Committed and not aggregated are "
            "those of an attempt that was repeated for want of a quorum; offered and not committed, those that were "
            "refused: a sender of what is no delta is among the scenes."
        )
        yield ""


def _power(board: Board) -> Iterator[str]:
    cuts = board.get("power", ())
    ours = [one for one in cuts if one["scene"] != CONTROL_NAME]
    if not ours:
        return
    steps, images = (sum(one[name] for one in ours) for name in ("steps", "images"))
    broken = sum(sum(one["broken"].values()) for one in ours)
    names = ", ".join(one["scene"] for one in ours)
    yield f"| power cuts: after how many steps, of {names} | {steps} | all |"
    yield f"| what they may leave: different folders, of which something is lost or wrong in | {images}, {broken} | 0 |"
    for one in cuts:
        if one["scene"] == CONTROL_NAME:
            wrong = sum(one["broken"].values())
            yield f"| the same of a file replaced without a sync (control) | {wrong} of {one['images']} | not 0 |"


def _faults(board: Board) -> Iterator[str]:
    if not board.get("faults"):
        return
    yield from ("| fault | broker | times | survived | results | seconds |", "|---|---|---|---|---|---|")
    for fault in board["faults"]:
        survived = f"not tried: needs {fault['lacks']}" if fault["lacks"] else ("yes" if fault["passed"] else "**no**")
        tally = fault["tally"]
        counts = f"{tally['offered']} offered, {tally['receipted']} receipted, {tally['aggregated']} aggregated"
        head = f"{fault['kind']} | {fault['broker']} | {fault['injected']}"
        yield f"| {head} | {survived} | {counts} | {fault['wall_s']:.0f} |"
    yield ""


def _stragglers(board: Board) -> Iterator[str]:
    if "stragglers" not in board:
        return
    head = (
        "one of four devices is ten times slower",
        "versions",
        "seconds for each",
        "results used",
        "of the slow one",
    )
    yield from (f"| {' | '.join(head)} |", "|---|---|---|---|---|")
    for row in board["stragglers"]["courses"]:
        late = f", {row['staleness']:.1f} versions late in the mean" if row["staleness"] else ""
        yield (
            f"| {row['course']} | {row['versions']} | {row['version_s']:.1f} | {row['results']} | {row['slow']}{late} |"
        )
    loads = [row["load"] for row in board["stragglers"]["courses"]]
    yield from ("", f"All on one machine, with {min(loads):.0f} to {max(loads):.0f} processes that wanted to run.", "")


def _control(board: Board) -> Iterator[str]:
    if "control" not in board:
        return
    push, mean = board["control"]["naive_push"], board["control"]["plain_fedavg"]
    yield from ("| control: the obvious way | it | ours |", "|---|---|---|")
    told = f"{push['acknowledged']} of {push['published']} acknowledged, **{push['received']} received**"
    yield f"| chunks pushed at QoS 1 to a frozen subscriber, Mosquitto as it comes | {told} | {_frozen(board)} |"
    plain = f"**{mean['plain_not_finite']} of {mean['numbers']} numbers are none**"
    same = "the same as without that device" if mean["same_as_without"] else "**not** the same as without that device"
    ours = f"{mean['ours_not_finite']}; refused, {mean['refusal']}; {same}"
    yield f"| the mean of three deltas, one with one NaN | {plain} | {ours} |"
    yield ""


def _frozen(board: Board) -> str:
    """What our transfers did in the run with a frozen device."""
    run = next((fault for fault in board.get("faults", ()) if fault["kind"] == "frozen device"), None)
    if run is None:
        return "not measured"
    tally = run["tally"]
    done = f"{tally['aggregated']} of {tally['offered']} results aggregated"
    return f"frozen device above: {done}, {tally['wrong_blobs']} of {tally['blobs']} blobs wrong"


def _promises(board: Board) -> Iterator[str]:
    for state in STATES:
        named = sorted((name for name, found in board["promises"].items() if found == state), key=_number)
        yield f"- promises **{state}**: {len(named)} of {len(board['promises'])}: {', '.join(named)}"
    yield ""


def _number(promise: str) -> int:
    return int(promise.removeprefix("P"))


def _problems(board: Board) -> Iterator[str]:
    if missing := [name for name in SECTIONS if name not in board]:
        flags = " ".join(f"--only {name}" for name in missing)
        yield f"Not measured yet: {', '.join(missing)}; `python -m benchmarks.reliability {flags}` adds them."
        yield ""
    yield "Nothing is amiss." if not board["amiss"] else "Amiss:"
    yield from (f"- {line}" for line in board["amiss"])
