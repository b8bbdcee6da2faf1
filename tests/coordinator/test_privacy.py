"""What a device's data can change, what noise hides of that, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import privacy
from coordinator.aggregate.rules import Aggregate, Contribution, Private, aggregate
from coordinator.config import AdapterConfig, AggregationConfig, Config, ParticipantConfig, Rule
from coordinator.course import RoundsConfig
from coordinator.events import AggregateRound, GiveTask, HelloHeard
from coordinator.guards import PrivacyConfig
from coordinator.history import read_history
from coordinator.ledger import Ledger
from coordinator.plan import Past, Plan
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.types import Level
from coordinator.privacy import Bounds, Spent, epsilon, private_mean, standing
from coordinator.report import make_report
from coordinator.rounds import Rounds
from coordinator.task_book import TaskMaker
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.delta import Delta
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.noise import true_noise
from edge_sdk.wire.tensors import Array
from tests.coordinator.samples import MB, make_adapter, make_config, make_delta, make_hello

SHAPES = {"a": (3, 4), "b": (5,)}
PRIVACY = PrivacyConfig(noise_multiplier=1.0, clip_norm=0.5, delta=1e-5)
QUIET = dataclasses.replace(PRIVACY, noise_multiplier=0.0)
BOUNDS = Bounds(0.5, 4)
NORMAL = statistics.NormalDist()

seeds = st.integers(0, 2**31)


def seeded(seed: int) -> privacy.Noise:
    """Noise that a test can draw again."""
    random = np.random.default_rng(seed)
    return lambda shape: np.asarray(random.normal(size=shape))


def silent(shape: tuple[int, ...]) -> Array:
    """None at all."""
    return np.zeros(shape)


def mean_of(deltas: list[Delta], config: PrivacyConfig = QUIET) -> dict[str, Array]:
    """Without noise."""
    return private_mean(SHAPES, deltas, config, BOUNDS, silent)[0]


def deltas(count: int, seed: int, scale: float = 1.0) -> list[Delta]:
    """Longer than the bound, most of them."""
    return [make_delta(SHAPES, seed + k, scale) for k in range(count)]


# ---- the mechanism


@given(seeds, st.floats(1e-3, 1e4), st.integers(0, 5))
def test_one_device_changes_the_sum_by_twice_its_bound_at_most(seed: int, scale: float, others: int) -> None:
    """Whatever its data was and is, and whoever else there is; one that drops out changes it by the bound at most."""
    rest = deltas(others, seed + 10)
    one, other = (make_delta(SHAPES, seed + k, scale) for k in (0, 1))
    first, second, without = mean_of([*rest, one]), mean_of([*rest, other]), mean_of(rest)

    def apart(x: dict[str, Array], y: dict[str, Array]) -> float:
        return math.sqrt(sum(float(np.sum((x[name] - y[name]) ** 2)) for name in SHAPES)) * BOUNDS.expected

    assert apart(first, second) <= 2 * BOUNDS.clip_norm * (1 + 1e-9)
    assert apart(first, without) <= BOUNDS.clip_norm * (1 + 1e-9)


@given(seeds, st.integers(0, 6))
def test_the_mean_is_the_formula(seed: int, count: int) -> None:
    """The slow reference: clipped by hand, added, divided by what is expected and not by what came."""
    came = deltas(count, seed, 0.2)
    found = mean_of(came)
    for name, shape in SHAPES.items():
        wanted = np.zeros(shape)
        for delta in came:
            wanted = wanted + delta.tensors[name].astype(float) * min(1.0, BOUNDS.clip_norm / delta.norm())
        np.testing.assert_allclose(found[name], wanted / BOUNDS.expected, atol=1e-12)


def test_noise_is_on_every_tensor_and_as_large_as_said() -> None:
    """Also on one that nobody delivered: standard deviation z C / m, from the given source."""
    shapes = {"a": (200, 200), "b": (100, 100)}
    found, clip_norm = private_mean(shapes, [], PRIVACY, BOUNDS, seeded(1))
    for array in found.values():
        assert float(array.std()) == pytest.approx(1.0 * 0.5 / 4, rel=0.02)
    assert clip_norm == BOUNDS.clip_norm
    again, _ = private_mean(shapes, [], PRIVACY, BOUNDS, seeded(1))
    assert all(np.array_equal(array, again[name]) for name, array in found.items())


def test_true_noise_is_normal_and_new() -> None:
    """Of 400,000 numbers: mean, variance and tails within six standard errors; no two calls alike."""
    found = true_noise((400, 1000)).ravel()
    error = 1 / math.sqrt(found.size)
    assert abs(found.mean()) < 6 * error
    assert abs(found.var() - 1) < 6 * math.sqrt(2) * error
    for limit in (1.0, 2.0, 3.0):
        share = 2 * NORMAL.cdf(-limit)
        assert abs(float((np.abs(found) > limit).mean()) - share) < 6 * math.sqrt(share) * error
    assert abs(float(np.mean(found[:-1:2] * found[1::2]))) < 6 * math.sqrt(2) * error
    assert not np.array_equal(true_noise((3,)), true_noise((3,)))
    assert true_noise(()).shape == ()
    assert true_noise((0, 3)).shape == (0, 3)


def test_the_bound_follows_the_quantile() -> None:
    """From far too large and far too small it comes to where the quantile of the norms is, noise or not."""
    config = dataclasses.replace(PRIVACY, quantile=0.5, count_noise=1.0)
    random = np.random.default_rng(4)
    norms = random.lognormal(0.0, 0.5, (200, 40))  # the median is 1
    for clip_norm in (0.01, 30.0):
        bounds = Bounds(clip_norm, 40)
        for row in norms:
            came = [Delta({"a": np.full((1,), norm, np.float32)}) for norm in row]
            _, following = private_mean({"a": (1,)}, came, config, bounds, seeded(int(row[0] * 1e6)))
            bounds = Bounds(following, 40)
        assert bounds.clip_norm == pytest.approx(1.0, rel=0.2)


def test_who_drops_out_does_not_move_the_bound() -> None:
    """Half of those that came are within the bound: it stays, however many were expected."""
    config = dataclasses.replace(PRIVACY, quantile=0.5, count_noise=1.0)
    came = [Delta({"a": np.full((1,), size, np.float32)}) for size in (0.1, 9.0)]
    for expected in (2, 100):
        _, following = private_mean({"a": (1,)}, came, config, Bounds(0.5, expected), silent)
        assert following == 0.5


@given(st.floats(0.01, 10), st.floats(1.01, 100))
def test_sum_and_count_together_are_worth_the_multiplier(multiplier: float, more: float) -> None:
    """Theorem 1: the inverse squares add up."""
    config = dataclasses.replace(PRIVACY, noise_multiplier=multiplier, quantile=0.5, count_noise=more * multiplier / 2)
    together = config.delta_noise_multiplier**-2 + (2 * config.count_noise) ** -2
    assert together == pytest.approx(multiplier**-2, rel=1e-9)
    assert config.delta_noise_multiplier > multiplier
    assert PRIVACY.delta_noise_multiplier == PRIVACY.noise_multiplier


def test_a_round_is_private_and_moves_by_the_servers_step() -> None:
    """Aggregation gives each device one vote, adds the noise, steps at the server's rate, and leaves A alone."""
    adapter = make_adapter()
    shapes = {name: array.shape for name, array in adapter.items() if name.endswith("lora_B")}
    came = [Contribution(make_delta(shapes, k), 1 + 9 * k) for k in range(3)]
    config = AggregationConfig(rule=Rule.FREEZE_A, learning_rate=0.5)
    private = Private(PRIVACY, BOUNDS, shapes, seeded(2))
    result = aggregate(config, adapter, came, {}, private=private)
    assert isinstance(result, Aggregate)
    wanted, _ = private_mean(shapes, [c.delta for c in came], PRIVACY, BOUNDS, seeded(2))
    for name, array in adapter.items():
        moved = array + 0.5 * wanted[name] if name in wanted else array
        np.testing.assert_allclose(result.adapter[name], moved, atol=1e-6)


# ---- what is counted


def exact(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism of sensitivity over noise `mu`, by bisection.

    B. Balle and Y.-X. Wang, Improving the Gaussian Mechanism for Differential Privacy, ICML 2018, theorem 8.
    """

    def loss(epsilon: float) -> float:
        return NORMAL.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * NORMAL.cdf(-mu / 2 - epsilon / mu)

    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) > delta else (low, middle)
    return high


def spent(count: int, *, multiplier: float = 8.0, present: int = 100, drawn: int = 100) -> list[Spent]:
    """So many rounds alike."""
    return [Spent(k + 1, present, drawn, drawn, 0.5, 0.5, multiplier) for k in range(count)]


@pytest.mark.parametrize(("count", "multiplier"), [(1, 4.0), (10, 8.0), (50, 20.0)])
def test_epsilon_is_that_of_the_gaussian_mechanism(count: int, multiplier: float) -> None:
    """Without a lot: never below the exact value for sensitivity 2 C, and little above it."""
    true = exact(2 * math.sqrt(count) / multiplier, 1e-5)
    assert true <= epsilon(spent(count, multiplier=multiplier), 1e-5) <= 1.25 * true


def test_rounds_add_up_and_a_lot_helps() -> None:
    """Epsilon grows with each round and falls with noise and with a smaller share drawn; no rounds cost nothing."""
    assert epsilon([], 1e-5) == 0
    by_count = [epsilon(spent(count), 1e-5) for count in (1, 2, 4, 8)]
    assert by_count == sorted(set(by_count))
    by_share = [epsilon(spent(4, drawn=drawn), 1e-5) for drawn in (5, 20, 100)]
    assert by_share == sorted(set(by_share))
    assert epsilon(spent(4, multiplier=16.0), 1e-5) < epsilon(spent(4), 1e-5)
    mixed = [*spent(2, drawn=5), *spent(2)]
    assert epsilon(spent(4, drawn=5), 1e-5) < epsilon(mixed, 1e-5) < epsilon(spent(4), 1e-5)


# ---- what is said


def private_config(tmp_path: pathlib.Path) -> Config:
    """A run with privacy, of which nothing is in doubt."""
    return dataclasses.replace(make_config(tmp_path, rule=Rule.FREEZE_A), privacy=PRIVACY)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: dataclasses.replace(c, privacy=QUIET), "no noise"),
        (
            lambda c: dataclasses.replace(c, training=dataclasses.replace(c.training, delta_codec=DeltaCodec.INT8)),
            "what int8 leaves out",
        ),
        (
            lambda c: dataclasses.replace(c, participant=ParticipantConfig(budget="1GB", path=pathlib.Path("x"))),
            "server, this machine's own device, is in every round",
        ),
        (lambda c: dataclasses.replace(c, adapter=AdapterConfig(start=pathlib.Path("x"))), "another run"),
    ],
)
def test_a_doubt_is_no_guarantee(tmp_path: pathlib.Path, change: Callable[[Config], Config], reason: str) -> None:
    """Where an assumption does not hold there is no epsilon, and the reason is said."""
    config = private_config(tmp_path)
    said = standing(config, spent(2))
    assert said.epsilon == epsilon(spent(2), 1e-5)
    assert str(said).startswith(f"epsilon {said.epsilon:.3g} so far, at delta 1e-05")
    doubtful = standing(change(config), spent(2))
    assert doubtful.epsilon is None
    assert str(doubtful).startswith("no guarantee: ")
    assert reason in str(doubtful)


def test_it_goes_on_counting_after_a_restart(tmp_path: pathlib.Path) -> None:
    """Each version's share is written with it; a coordinator that was started again has spent what was spent."""
    rows = spent(3, drawn=20)
    for k, row in enumerate(rows):
        with Ledger(tmp_path / "ledger.sqlite", "test", "digest") as ledger:
            ledger.begin(blob_of(b"0"))
            assert ledger.spent() == tuple(rows[:k])
            secret = ledger.secret
            ledger.open_round(row.round, 1, row.present, row.drawn)
            assert ledger.lot(row.round, 1) == (100, 20)
            ledger.commit_adapter(
                AggregateRound(row.round, 1, blob_of(b""), ()), blob_of(b"%d" % row.round), 0.0, None, row
            )
    with Ledger(tmp_path / "ledger.sqlite", "test", "digest") as ledger:
        assert ledger.spent() == tuple(rows)
        assert ledger.secret == secret
    history, config = read_history(tmp_path / "ledger.sqlite"), private_config(tmp_path)
    report = json.loads(json.dumps(make_report(history, config, "done", [])))["privacy"]
    assert report["guarantee"] is True
    assert report["epsilon"] == epsilon(rows, 1e-5)
    assert [row["drawn"] for row in report["rounds"]] == [20] * 3
    assert "losses" in report["covers"]
    assert make_report(history, dataclasses.replace(config, privacy=None), "done", [])["privacy"] is None


def test_lots_are_a_secret(tmp_path: pathlib.Path) -> None:
    """With the same seed two runs draw other devices, and one run that is started again draws the same."""

    def drawn(path: pathlib.Path) -> list[str]:
        with Ledger(path, "test", "digest") as ledger:
            rounds = RoundsConfig(count=2, devices=40, participants=10)
            tasks = TaskMaker(ledger.run, make_config(tmp_path).training, Rule.FREEZE_A)
            plan = Plan(rounds, tasks, (Level("large", MB),), {"large": blob_of(b"")}, lots=ledger.secret)
            course = Rounds(plan, LargestThatFits(), Past(0, blob_of(b"0")), 0.0)
            asked = [i for k in range(40) for i in course.handle(HelloHeard(make_hello(f"d{k:02}")), 0.0)]
            return [i.device for i in asked if isinstance(i, GiveTask)]

    one, other = tmp_path / "one.sqlite", tmp_path / "other.sqlite"
    assert len(drawn(one)) == 10
    assert drawn(one) == drawn(one) != drawn(other)


@settings(max_examples=5)
@given(st.integers(1, 9), st.integers(0, 9))
def test_the_denominator_is_the_configurations(devices: int, participants: int) -> None:
    """How many are expected, whoever comes: the participants where there is a lot, else the devices."""
    rounds = RoundsConfig(count=1, devices=devices, participants=participants)
    config = make_config(pathlib.Path("x"), rounds=rounds, rule=Rule.FREEZE_A)
    assert privacy.expected_devices(config) == (participants or devices)
