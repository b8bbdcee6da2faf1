"""Policies on trial: who decides which round, what a restart remembers, and that the worse one goes."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import pytest

from coordinator.config import EvaluationConfig, load_config
from coordinator.controller.duel import TURNS
from coordinator.controller.training import save
from coordinator.errors import ConfigError
from coordinator.jobs import Done, Failed, Jobs
from coordinator.ledger import Ledger
from coordinator.places import ledger_path
from coordinator.policy.learned import Learned, load_policy
from coordinator.policy.settings import PolicyConfig, PolicyName, TuneConfig
from coordinator.tuner import JOB, Tuner
from tests.coordinator.samples import CONFIG
from tests.coordinator.test_replay import Run


@dataclasses.dataclass
class Place:
    """A run's folder, and what the tuner said."""

    folder: pathlib.Path
    said: list[str] = dataclasses.field(default_factory=list)
    runs: list[Run] = dataclasses.field(default_factory=list)

    def tuner(self, ledger: Ledger) -> Tuner:
        """As a coordinator that just started makes it."""
        (self.folder / "coordinator.toml").write_text(CONFIG, encoding="utf-8")
        config = load_config(self.folder / "coordinator.toml")
        config = dataclasses.replace(
            config,
            rounds=dataclasses.replace(config.rounds, count=20),
            policy=PolicyConfig(name=PolicyName.PPO, tune=TuneConfig(every=2)),
            evaluation=EvaluationConfig(path=self.folder),
        )
        assert ledger.path == ledger_path(config)
        tune = config.policy.tune
        assert tune is not None
        return Tuner(config, tune, load_policy(), ledger, Jobs(), lambda line, _style: self.said.append(line))

    def tuned(self) -> Learned:
        """Another policy, where the tuner looks for it."""
        first = load_policy()
        made = dataclasses.replace(first, seed=7, card={**first.card, "seed": 7, "gap": 2.0, "level_bytes": 10_000_000})
        save(made, self.folder / "made.safetensors")
        found = load_policy(self.folder / "made.safetensors")
        (self.folder / "made.safetensors").rename(self.folder / "out" / "policies" / f"{found.digest}.safetensors")
        return found


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[Place]:
    """An empty one."""
    (tmp_path / "out").mkdir()
    place = Place(tmp_path)
    yield place
    for run in place.runs:
        run.kill()


def served(place: Place, until_round: int) -> Run:
    """A run whose rounds before that one are done and measured."""
    run = Run(place.folder / "out" / "ledger.sqlite")
    run.start()
    place.runs.append(run)
    run.ledger.evaluation(0, "full", 4.0, None, 8)
    run.go(until_round)
    return run


def test_two_policies_decide_in_turns(place: Place) -> None:
    """From the next round on; and where the coordinator was restarted in between, as if it had not been."""
    run = served(place, 2)
    tuner = place.tuner(run.ledger)
    base, tuned = load_policy().digest, place.tuned()
    assert [tuner.decides(round_).digest for round_ in range(1, 9)] == [base] * 8
    assert tuner.ended(Done(JOB, (base, tuned)), 3)
    wanted = [base, base, *(tuned.digest if turn else base for turn in TURNS), base]
    assert [tuner.decides(round_).digest for round_ in range(1, 8)] == wanted
    assert [place.tuner(run.ledger).decides(round_).digest for round_ in range(1, 8)] == wanted
    assert "on trial in rounds 3 to 6" in place.said[-1]


def test_who_earned_less_goes(place: Place) -> None:
    """Once all rounds of the trial are measured it is said in the ledger who stays, and a restart keeps to it."""
    run = served(place, 4)
    tuner, base, tuned = place.tuner(run.ledger), load_policy().digest, place.tuned()
    # Of rounds 1 to 4 the losses are 4, 3, 1.5, 1: the first and the fourth, the tuned policy's, gain 1 and less.
    tuner.ended(Done(JOB, (base, tuned)), 1)
    tuner.measured()
    assert not run.ledger.duels()[-1].winner
    while run.rounds.state.value != "done":
        run.answer(run.asks.pop(0) if run.asks else None)
    tuner.measured()
    duel = run.ledger.duels()[-1]
    assert duel.winner == base
    assert "BACK TO THE POLICY BEFORE IT" in place.said[-1]
    assert tuner.decides(9).digest == place.tuner(run.ledger).decides(9).digest == base


def test_a_tuning_that_fails_changes_nothing(place: Place) -> None:
    """It is said, and the policy stays; so it is where nothing better was found, or it comes too late for a duel."""
    run = served(place, 2)
    tuner, base = place.tuner(run.ledger), load_policy().digest
    assert not tuner.ended(Done("another job", None), 3)
    assert tuner.ended(Failed(JOB, OSError("no room")), 3)
    assert "could not be tuned, and stays: no room" in place.said[-1]
    assert tuner.ended(Done(JOB, None), 3)
    assert "nothing better" in place.said[-1]
    assert tuner.ended(Done(JOB, (base, place.tuned())), 19)
    assert "too late" in place.said[-1]
    assert not run.ledger.duels()
    assert tuner.decides(5).digest == base


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("[policy]\nname = 'kkt'\n[policy.tune]\nevery = 3\n", "policy.tune is for the policy ppo, this one is kkt"),
        ("[policy]\nname = 'ppo'\n[policy.tune]\nevery = 3\n", "policy.tune needs an [evaluation] table"),
        ("[policy]\nname = 'ppo'\n[policy.tune]\nevery = 1\n", "policy.tune.every"),
        (
            "[policy]\nname = 'ppo'\n[policy.tune]\nevery = 3\n[evaluation]\npath = 'x'\n",
            "policy.tune compares rounds",
        ),
    ],
)
def test_what_cannot_be_tuned(added: str, says: str, tmp_path: pathlib.Path) -> None:
    """One line says what is missing."""
    late = CONFIG.replace("devices = 5", "devices = 5\nlate = 'discount'") if "compares" in says else CONFIG
    (tmp_path / "coordinator.toml").write_text(late + added, encoding="utf-8")
    with pytest.raises(ConfigError, match="policy") as caught:
        load_config(tmp_path / "coordinator.toml")
    assert says in str(caught.value)
