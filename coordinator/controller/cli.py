"""`fedpeat controller`: train a policy, judge it, and look again at what one decided."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
from typing import Any, Final

from coordinator.controller.calibrate_cli import add_calibrate
from coordinator.controller.profile import DEFAULT, load_profile
from coordinator.controller.reward import Weights
from coordinator.controller.trainer import POLICY, lacking
from coordinator.errors import ConfigError
from coordinator.policy.learned import DEFAULT as DEFAULT_POLICY
from coordinator.policy.learned import load_policy

CONFIG: Final = "coordinator.toml"
MOST_DEVICES: Final = 10_000


def add_command(commands: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    """Add `controller` and what it can do."""
    parser = commands.add_parser("controller", help="train and judge the policy that decides the rounds")
    inner = parser.add_subparsers(required=True, metavar="COMMAND")
    command = inner.add_parser("train", help="train a policy on simulated fleets around measured costs")
    command.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    command.add_argument("--steps", type=_whole, default=200_000, help="simulated rounds; default: 200000")
    command.add_argument("--seed", type=_whole, default=0)
    command.add_argument(
        "--imitate",
        type=_whole,
        default=1200,
        metavar="RUNS",
        help="of the teacher, an analytic policy, to begin with; default: 1200",
    )
    command.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in DIR, your own: it may run code"
    )
    _add_common(command)
    command.set_defaults(run=_train)
    command = inner.add_parser("evaluate", help="judge a policy beside the others, on fleets that it never saw")
    command.add_argument("policy", type=pathlib.Path, nargs="?", default=DEFAULT_POLICY, metavar="FILE")
    command.add_argument("--devices", type=_whole, default=8)
    command.add_argument("--seeds", type=_whole, default=5, help="of four fleets in each scenario; default: 5")
    command.add_argument("--scenario", default="", help="one of them alone")
    _add_common(command)
    command.set_defaults(run=_evaluate)
    add_calibrate(inner)
    command = inner.add_parser("tune", help="go on training a policy, for the fleet that a run's ledger knows")
    command.add_argument("ledger", type=pathlib.Path, metavar="LEDGER", help="the run's ledger.sqlite")
    command.add_argument("--policy", type=pathlib.Path, default=DEFAULT_POLICY, metavar="FILE")
    command.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    command.add_argument("--steps", type=_whole, default=20_000, help="simulated rounds; default: 20000")
    command.add_argument("--seed", type=_whole, default=0)
    command.set_defaults(run=_tune)
    command = inner.add_parser("replay", help="each decision of a run in words, and whether the policy makes it again")
    command.add_argument("--config", type=pathlib.Path, default=pathlib.Path(CONFIG), metavar="FILE")
    command.add_argument("--round", type=_whole, default=None, metavar="N", help="show this round's decisions alone")
    command.set_defaults(run=_replay)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--profile", type=pathlib.Path, default=DEFAULT, metavar="FILE", help="measured costs; default: SmolLM2-135M's"
    )
    for field in dataclasses.fields(Weights):
        text = f"weight of {field.name} in the reward; default: {field.default}"
        command.add_argument(f"--{field.name}", type=_weight, default=field.default, metavar="WEIGHT", help=text)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 12:  # noqa: PLR2004 - digits that any count has
        msg = f"{text!r} is no whole number"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        msg = f"{text!r} is no number of 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _weights(arguments: argparse.Namespace) -> Weights:
    return Weights(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Weights)})


def _require_trainer() -> None:
    if lacks := lacking():
        msg = f"{', '.join(lacks)} not found; to train a policy: pip install 'fedpeat[controller]'"
        raise ConfigError(msg)


def _train(arguments: argparse.Namespace) -> int:
    _require_trainer()
    from coordinator.controller.training import Request, train
    from coordinator.controller.worlds import around

    profile = load_profile(arguments.profile)
    request = Request(steps=arguments.steps, seed=arguments.seed, shown=arguments.imitate)
    train(request, around(profile), _weights(arguments), arguments.out, _say, resume=arguments.resume)
    print(f"the best policy is in {arguments.out / POLICY}; in coordinator.toml: [policy] name = 'ppo', file = ...")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    """0, also where nothing better was found: there is no policy in DIR then. Raises what `tuned` does."""
    _require_trainer()
    from coordinator.controller.tuning import tuned
    from coordinator.controller.twin import twin_of

    base, twin = load_policy(arguments.policy), twin_of(arguments.ledger)
    found = tuned(base, twin.grounds(), arguments.out, _say, steps=arguments.steps, seed=arguments.seed)
    print("nothing better was found" if found is None else f"the tuned policy is {found}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from coordinator.controller.baselines import BASELINES
    from coordinator.controller.compare import compare, scenarios

    profile, policy = load_profile(arguments.profile), load_policy(arguments.policy)
    if not 1 <= arguments.devices <= MOST_DEVICES or arguments.seeds < 1:
        msg = f"--devices must be from 1 to {MOST_DEVICES}, --seeds 1 or more"
        raise ConfigError(msg)
    policies = {
        "ppo": lambda one: dataclasses.replace(policy, people_power=one.profile.curve.people_power),
        **BASELINES,
    }
    seeds, named = range(arguments.seeds), scenarios(arguments.scenario)
    compare(profile, policies, _weights(arguments), arguments.devices, seeds, named, say=_say)
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    """0 where all decisions that are shown are made again, 1 where one is not. Raises ConfigError, LedgerError."""
    from coordinator.assignment import name_of
    from coordinator.config import load_config
    from coordinator.controller.replay import lines, replay
    from coordinator.places import ledger_path, policies_folder
    from coordinator.policy.registry import policy_or_greedy

    config = load_config(arguments.config)
    path, policy = ledger_path(config), policy_or_greedy(config.policy, _say)
    shown = agreed = 0
    tuned = {name_of(one): one for one in map(load_policy, sorted(policies_folder(config).glob("*.safetensors")))}
    for one in replay(path, policy, tuned):
        if arguments.round in {None, one.logged.round}:
            print("\n".join(lines(one)))
            shown, agreed = shown + 1, agreed + one.agrees
    if not shown:
        which = "" if arguments.round is None else f" for round {arguments.round}"
        msg = f"{path} has no decision{which} so far"
        raise ConfigError(msg)
    print(f"{agreed} of {shown} decisions are made again by {name_of(policy)}")
    return 0 if agreed == shown else 1


def _say(line: str) -> None:
    print(line, flush=True)
