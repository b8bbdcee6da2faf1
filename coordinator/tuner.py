"""Tunes the policy while it is in use: from the ledger, in a process of its own, on trial before it stays.

Every so many rounds `fedpeat controller tune` makes another policy of the one that decides, for this run's own fleet.
The two then decide rounds in turns, see `coordinator.controller.duel`; which of them stays is in the ledger, so that
a restart goes on with the trial, and never tries what was found to be worse. A tuning that fails changes nothing.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Final

from coordinator.config import Config
from coordinator.controller.duel import ROUNDS, Duel, verdict
from coordinator.controller.earned import Measured, earned
from coordinator.controller.reward import Weights
from coordinator.controller.trainer import POLICY, lacking
from coordinator.errors import ConfigError
from coordinator.history import read_history
from coordinator.jobs import Done, Failed, Jobs, Line
from coordinator.ledger import Ledger
from coordinator.places import policies_folder
from coordinator.policy.learned import DEFAULT, Learned, PolicyFileError, load_policy
from coordinator.policy.settings import TuneConfig
from edge_sdk.wire.blobs import moved_durably, written_atomically

JOB: Final = "tuning the policy"


class Tuner:
    """Says which policy decides a round; `digest` of it is its file's SHA-256."""

    def __init__(
        self,
        config: Config,
        tune: TuneConfig,
        first: Learned,
        ledger: Ledger,
        jobs: Jobs,
        say: Callable[[str, str], None],
    ) -> None:
        """`first` is the configured policy. Raises ConfigError where what tuning takes is not installed, OSError."""
        if lacks := lacking():
            msg = f"policy.tune needs {', '.join(lacks)}: pip install 'fedpeat[controller]'"
            raise ConfigError(msg)
        self._config, self._tune, self._ledger, self._jobs, self._say = config, tune, ledger, jobs, say
        self._weights, self._busy = Weights.of(first.card.get("weights")), False
        self._folder = policies_folder(config)
        self._policies = {first.digest: first}
        self._keep(config.policy.file or DEFAULT, first.digest)
        self._first, self._duels = first.digest, ledger.duels()

    def decides(self, round_: int) -> Learned:
        """The policy for a round that opens."""
        duel = self._duels[-1] if self._duels else None
        digest = self._first if duel is None else duel.decides(round_)
        try:
            return self._policy(digest)
        except PolicyFileError as error:
            self._say(f"{error}; the configured policy decides", "red")
            return self._policies[self._first]

    def after(self, round_: int) -> None:
        """A round is over: tune where it is time, there is no trial, and rounds enough are left for one."""
        rounds, due = self._config.rounds.count, round_ % self._tune.every == 0
        trying = bool(self._duels) and not self._duels[-1].winner
        if due and not trying and not self._busy and round_ + 1 + ROUNDS <= rounds:
            self._busy = True
            base = self.decides(round_ + 1)
            self._jobs.start(JOB, JOB, lambda say: self._made(base.digest, say))

    def ended(self, outcome: Done | Failed, next_round: int) -> bool:
        """Whether it was this job; a policy that was made is on trial from `next_round` on."""
        if outcome.job != JOB:
            return False
        self._busy = False
        if isinstance(outcome, Failed):
            self._say(f"the policy could not be tuned, and stays: {outcome.error}", "yellow")
        elif isinstance(outcome.value, tuple):
            base, tuned = outcome.value
            self._begin(base, tuned, next_round)
        else:
            self._say("the policy was tuned: nothing better was found", "cyan")
        return True

    def measured(self) -> None:
        """More is known of what rounds earned: end a trial that is decided."""
        if not self._duels or self._duels[-1].winner:
            return
        duel = self._duels[-1]
        history, answers = read_history(self._ledger.path), tuple(self._ledger.answers())
        by = Measured(duel.gap, self._config.rounds.deadline_s, duel.level_bytes, self._weights)
        said = verdict(duel, {round_: earned(history, answers, round_, by) for round_ in duel.rounds})
        if said is None:
            return
        winner, why = said
        self._ledger.end_duel(duel.first_round, winner, why)
        self._duels = self._ledger.duels()
        stays = "the tuned policy stays" if winner == duel.tuned else "BACK TO THE POLICY BEFORE IT"
        self._say(f"{stays}: {why}", "bold" if winner == duel.tuned else "bold red")

    def _begin(self, base: str, tuned: Learned, next_round: int) -> None:
        if next_round + ROUNDS - 1 > self._config.rounds.count:
            self._say("the policy was tuned, too late for a trial: it is not used", "cyan")
            return
        self._policies[tuned.digest] = tuned
        self._ledger.begin_duel(Duel(next_round, base, tuned.digest, tuned.card["gap"], tuned.card["level_bytes"]))
        self._duels = self._ledger.duels()
        last = next_round + ROUNDS - 1
        self._say(f"the policy was tuned; on trial in rounds {next_round} to {last}, in turns with the other", "cyan")

    def _made(self, base: str, say: Callable[[Line], None]) -> tuple[str, Learned] | None:
        """In the job's thread: a better policy than that one, in its own fleet's simulation, where there is one."""
        out = self._folder / "making"
        shutil.rmtree(out, ignore_errors=True)
        command = [self._ledger.path, "--policy", self._path(base), "--out", out, "--steps", self._tune.steps]
        self._jobs.process([sys.executable, "-m", "coordinator.cli", "controller", "tune", *map(str, command)], say)
        if not (out / POLICY).is_file():
            return None
        tuned = load_policy(out / POLICY)
        moved_durably(out / POLICY, self._path(tuned.digest))
        shutil.rmtree(out, ignore_errors=True)
        return base, tuned

    def _policy(self, digest: str) -> Learned:
        if digest not in self._policies:
            self._policies[digest] = load_policy(self._path(digest))
        return self._policies[digest]

    def _keep(self, source: pathlib.Path, digest: str) -> None:
        """So that a trial, and whoever replays the run, finds it whatever becomes of its file."""
        kept = self._path(digest)
        if not kept.is_file():
            with written_atomically(kept) as file:
                file.write(source.read_bytes())

    def _path(self, digest: str) -> pathlib.Path:
        return self._folder / f"{digest}.safetensors"
