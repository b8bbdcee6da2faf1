"""Processes and threads whose outcomes come back through one queue."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from coordinator.errors import JobError
from coordinator.jobs import Done, Failed, Jobs, Line, Outcome, Progress

WAIT_S = 20.0
TALKS = "import json; [print(json.dumps({'n': n})) for n in range(3)]; print('chatter'); print('{no json')"
FAILS = "import sys; print('first', file=sys.stderr); print('the last word', file=sys.stderr); sys.exit(2)"


def until(jobs: Jobs, done: Callable[[list[Outcome]], bool]) -> list[Outcome]:
    """The outcomes until `done` of them."""
    found: list[Outcome] = []
    deadline_s = time.monotonic() + WAIT_S
    while not done(found) and time.monotonic() < deadline_s:
        found += jobs.poll()
        time.sleep(0.01)
    return found


def ended(count: int) -> Callable[[list[Outcome]], bool]:
    """Whether so many jobs have ended."""
    return lambda found: sum(not isinstance(o, Progress) for o in found) >= count


def start(jobs: Jobs, job: str, lane: str, program: str) -> None:
    """Begin a job: a process that runs `program`."""
    jobs.start(job, lane, lambda say: jobs.process([sys.executable, "-c", program], say))


def test_the_last_line_is_the_result(jobs: Jobs) -> None:
    """JSON lines before the last are progress, other output is passed over."""
    start(jobs, "job", "lane", TALKS)
    assert until(jobs, ended(1)) == [Progress("job", {"n": 0}), Progress("job", {"n": 1}), Done("job", {"n": 2})]


def test_a_stage_is_said_when_it_begins(jobs: Jobs) -> None:
    """A line with a stage is no result: it is progress at once, not when the next line comes."""
    start(jobs, "job", "lane", 'import time; print(\'{"stage": "load"}\', flush=True); time.sleep(60)')
    assert until(jobs, bool) == [Progress("job", {"stage": "load"})]


def test_a_failure_carries_its_last_words(jobs: Jobs) -> None:
    """A process that fails gives an error of one line with what it said last."""
    start(jobs, "job", "lane", FAILS)
    (failed,) = until(jobs, ended(1))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, JobError)
    assert str(failed.error).endswith("status 2: the last word")


def test_a_function_that_raises_is_a_failure(jobs: Jobs) -> None:
    """What a job raises reaches the owner, and the lane goes on."""

    def work(_say: Callable[[Line], None]) -> object:
        raise OSError(28, "No space left on device")

    jobs.start("bad", "lane", work)
    jobs.start("good", "lane", lambda _say: 7)
    bad, good = until(jobs, ended(2))
    assert isinstance(bad, Failed)
    assert "No space left" in str(bad.error)
    assert good == Done("good", 7)


def test_lanes_run_side_by_side(jobs: Jobs) -> None:
    """A long job in one lane does not hold up another lane, and its own lane keeps its order."""
    jobs.start("long", "a", lambda _say: time.sleep(0.5))
    jobs.start("after", "a", lambda _say: None)
    jobs.start("short", "b", lambda _say: None)
    assert [o.job for o in until(jobs, ended(3))] == ["short", "long", "after"]


def test_closing_ends_what_runs(jobs: Jobs) -> None:
    """A process that would run for a minute is ended at once, and nothing begins afterwards."""
    start(jobs, "sleeps", "lane", "import time; print('{}', flush=True); time.sleep(60)")
    time.sleep(0.3)
    begin_s = time.monotonic()
    jobs.close()
    start(jobs, "late", "other", "pass")
    outcomes = until(jobs, ended(1))
    assert time.monotonic() - begin_s < 10
    assert [type(outcome) for outcome in outcomes] == [Failed]
    time.sleep(0.2)
    assert jobs.poll() == []
