"""What a device's own noise promises for its single examples, against everybody, the coordinator included.

`edge_sdk.engine.private` is the mechanism: of n rows each is in a step by itself with probability b / n, and the sum of
clipped gradients has normal noise of z times the bound. Neighbours are data with one row more or less. A step is a
Poisson-sampled Gaussian mechanism, and steps compose by Renyi divergences; `dp_accounting` reckons both. All that a
device releases is made of those sums, but for its times, sizes and numbers of rows.

Every task that a device was given, and did not decline, counts as if it had been done and seen, with the fewest rows
that the device has ever told: b / n is largest then. Devices differ in n; what is told is the largest epsilon.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from coordinator.config import Config
from coordinator.guards import PrivacyConfig
from coordinator.history import History
from coordinator.privacy import ORDERS, Standing

DECLINED = "declined"
NEIGHBOURS = "one row is added to a device's data, or removed"
COVERS = (
    "everything that a device sends but the times, sizes and numbers of rows that it reports, for each single row of "
    "its data, and against the coordinator, too"
)


def doubts(config: Config, history: History) -> tuple[str, ...]:
    """Why nothing can be promised."""
    return tuple(_doubts(config, history))


def _doubts(config: Config, history: History) -> Iterator[str]:
    if config.privacy is None or not config.privacy.noise_multiplier:
        yield "there is no noise"
    told = {row.device for row in history.results if row.report.sampled_rows > 0}
    silent = sorted({row.device for row in history.results} - told)
    if silent:
        yield f"{silent[0]} did not say of how many rows it sampled"


def standing(config: Config, history: History) -> Standing:
    """Of the device that is worst off. Raises ValueError without a [privacy] table."""
    privacy = config.privacy
    if privacy is None:
        msg = "a run without [privacy]"
        raise ValueError(msg)
    found = doubts(config, history)
    if found:
        return Standing(None, privacy.delta, found, NEIGHBOURS)
    worst = max(epsilons(config, privacy, history).values(), default=0.0)
    return Standing(worst, privacy.delta, (), NEIGHBOURS)


def epsilons(config: Config, privacy: PrivacyConfig, history: History) -> dict[str, float]:
    """By device, of all that it was given."""
    given = Counter(task.device for task in history.tasks if task.state != DECLINED)
    rows: dict[str, int] = {}
    for row in history.results:
        rows[row.device] = min(rows.get(row.device, row.report.sampled_rows), row.report.sampled_rows)
    alike = {device: (tasks, _rate(config.training.batch, rows.get(device, 0))) for device, tasks in given.items()}
    known = {one: epsilon(privacy, *one, config.training.steps) for one in set(alike.values())}
    return {device: known[one] for device, one in alike.items()}


def epsilon(privacy: PrivacyConfig, tasks: int, rate: float, steps: int) -> float:
    """Of so many tasks of `steps` steps, each row being in a step with probability `rate`."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(privacy.noise_multiplier))
    accountant.compose(event, tasks * steps)
    return float(accountant.get_epsilon(privacy.delta))


def _rate(batch: int, rows: int) -> float:
    """How likely a row is in a step; certain where the device has never said how many there are."""
    return min(1.0, batch / rows) if rows else 1.0
